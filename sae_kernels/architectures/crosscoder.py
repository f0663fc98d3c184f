"""`crosscoder`: one set of latents for several layers of a model, or for one layer of several models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..codes import SparseCodes
from ..ops import Threshold, encode
from ._affine import Affine, fold_decoder, fold_encoder, rescale_latents
from ._base import CoderConfig
from ._by_tokens import ByTokens, Encoder, Parts, Terms
from ._density import DensityConfig, bias_of_density
from ._full import Full, relu_
from ._layers import LayersConfig, norms_by_layer
from ._penalty import Penalised
from ._rows import unit_rows
from ._sums import l1, squared_error

INITIAL_NORM = 0.1  # of each layer's part of a row of W_dec


@dataclass(frozen=True)
class CrosscoderConfig(DensityConfig, LayersConfig):
    """As `LayersConfig` and `DensityConfig`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_equal_parts("d_in")


class Crosscoder(ByTokens, Penalised):
    """f = ReLU(Σ_l E^l a^l + b_enc);  â^l = f D^l + b_dec^l.

    loss = Σ_l ‖a^l − â^l‖² + λ Σ_i f_i Σ_l ‖d_i^l‖: the mean over tokens of these sums over features and latents. λ is
    `sparsity_coefficient`. It means the same only for inputs of one scale, and layers (or models) weigh by theirs:
    scale each to E‖a^l‖ = √d. Terms: `mse` (the first sum), `l1` (the second, without λ).

    The layers' activations stand side by side, x = (a^1, …, a^L), so that encoding is one linear map and decoding one
    product: W_enc and W_dec (d_sae, L·d), row i of W_dec being (d_i^1, …, d_i^L). For two models, "layers" are the
    models; a latent whose relative norm of one of them is near 0 is a latent of the other alone.

    At the start: each d_i^l points in a random direction with norm 0.1, W_enc = W_decᵀ (the same rows), and b_enc such
    that each latent is active on a share `initial_density` of the first batch (see `bias_of_density`).

    A crosscoder with another activation needs no architecture of its own: `topk` and `batch_topk`, trained on several
    hook points, are the TopK and BatchTopK crosscoders (arXiv 2504.02922 has the latter), rows of W_dec having norm 1
    over all layers together.

    Source: Lindsey et al., Sparse Crosscoders for Cross-Layer Features and Model Diffing (Transformer Circuits, 2024).
    """

    Config: ClassVar[type[CoderConfig]] = CrosscoderConfig
    architecture: ClassVar[str] = "crosscoder"
    config: CrosscoderConfig

    def __init__(self, config: CrosscoderConfig) -> None:
        super().__init__(config)
        d = config.d_in // config.n_layers
        parts = INITIAL_NORM * unit_rows(torch.randn(config.d_sae * config.n_layers, d))
        rows = parts.view(config.d_sae, config.d_in)
        self.W_enc = nn.Parameter(rows.clone())
        self.b_enc = nn.Parameter(torch.zeros(config.d_sae))
        self.W_dec = nn.Parameter(rows)
        self.b_dec = nn.Parameter(torch.zeros(config.d_in))

    @property
    def n_layers(self) -> int:
        """Layers, or models."""
        return self.config.n_layers

    @torch.no_grad()
    def initialise(self, x: Tensor, target: Tensor) -> None:
        """b_dec, and b_enc to match."""
        super().initialise(x, target)
        self.b_enc.copy_(bias_of_density(x, self.W_enc, self.config.initial_density))

    def encode(self, x: Tensor) -> SparseCodes:
        """x (…, L·d) → ragged codes, all of them positive."""
        return encode(self.check_input(x), self.W_enc, self.b_enc, Threshold(0.0))

    def terms(self, x: Tensor, target: Tensor) -> Terms:
        """See `ByTokens`."""
        codes = self.encode(x)
        reconstruction = self.reconstruct(codes, x)
        penalty = l1(codes, self._norms())
        return Terms({"mse": squared_error(reconstruction, target), "l1": penalty}, codes, reconstruction)

    def full_terms(self, x: Tensor, target: Tensor, full: Full) -> Terms:
        """See `ByTokens`."""
        acts = relu_(full.pre_acts(x, self.W_enc, self.b_enc))
        norms = full.shared("norms", self._norms)
        reconstruction, penalty = full.decode_and_cost(acts, self.W_dec, self.b_dec, norms)
        return Terms({"mse": squared_error(reconstruction, target), "l1": penalty}, acts, reconstruction)

    def combined(self, parts: Parts) -> Tensor:
        """Σ_l ‖a^l − â^l‖² + λ Σ f_i Σ_l ‖d_i^l‖."""
        return parts["mse"] + self.sparsity * parts["l1"]

    def encoders(self, x: Tensor) -> list[Encoder]:
        """See `ByTokens`."""
        return [Encoder(x, self.W_enc, self.b_enc)]

    def _norms(self) -> Tensor:
        """Σ_l ‖d_i^l‖."""
        return norms_by_layer(self.W_dec, self.n_layers).sum(1)

    def fold(self, input: Affine, target: Affine) -> None:
        """See `SparseCoder.fold`. Layers of different scales leave it with decoders of different scales."""
        fold_encoder(self.W_enc, self.b_enc, input)
        fold_decoder(self.W_dec, self.b_dec, target)
        if scale := target.common_scale():
            rescale_latents(1 / scale, (self.W_enc, self.b_enc), self.W_dec)

    def layer_decoders(self) -> Tensor:
        """d_i^l: a view of W_dec, (d_sae, n_layers, d)."""
        return self.W_dec.view(self.d_sae, self.n_layers, -1)

    @torch.no_grad()
    def decoder_norms(self) -> Tensor:
        """‖d_i^l‖, (d_sae, n_layers), float32 (float64 for float64 weights)."""
        return norms_by_layer(self.W_dec, self.n_layers)

    @torch.no_grad()
    def relative_decoder_norms(self) -> Tensor:
        """‖d_i^l‖ / Σ_m ‖d_i^m‖, (d_sae, n_layers): rows sum to 1, and are 0 where a latent has no decoder at all.

        Between two models, the histogram of its last column has a peak near 0 (latents of the first alone), one near 1
        (of the second alone) and one near ½ (shared). Compare norms of layers in one scale: before `fold`, or with
        activations of equal scale.
        """
        norms = self.decoder_norms()
        return norms / norms.sum(1, keepdim=True).clamp_min(torch.finfo(norms.dtype).tiny)
