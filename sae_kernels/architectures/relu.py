"""`relu`: the sparse autoencoder with ReLU and an L1 penalty, in its two forms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ..codes import SparseCodes
from ..ops import Threshold, encode
from ._affine import Affine, fold_autoencoder, fold_decoder, fold_encoder, rescale_latents
from ._base import CoderConfig
from ._by_tokens import ByTokens, Encoder, Parts, Terms
from ._density import DensityConfig, bias_of_density
from ._full import Full, relu_
from ._penalty import Penalised, PenaltyConfig
from ._rows import unit_rows
from ._sums import l1, row_norms, squared_error

VARIANTS = ("april_2024", "2023")
INITIAL_NORM = 0.1  # of the rows of W_enc, and of W_dec where they are free


@dataclass(frozen=True)
class ReLUConfig(DensityConfig, PenaltyConfig):
    """`variant`: "april_2024" (free decoder norms, which the penalty counts in) or "2023" (unit norms, pre-bias).
    `subtract_b_dec`: the encoder reads x − b_dec; None becomes what the variant does."""

    variant: Literal["april_2024", "2023"] = "april_2024"
    subtract_b_dec: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_choice("variant", VARIANTS)
        if self.subtract_b_dec is None:
            object.__setattr__(self, "subtract_b_dec", self.variant == "2023")  # once, before anybody has seen it
        self.require_bool("subtract_b_dec")


class ReLUCoder(ByTokens, Penalised):
    """variant "april_2024":  f = ReLU(W_enc x + b_enc);  x̂ = f W_dec + b_dec;  ‖x − x̂‖² + λ Σ_i f_i ‖d_i‖.
    variant "2023":  f = ReLU(W_enc (x − b_dec) + b_enc);  x̂ = f W_dec + b_dec;  ‖x − x̂‖² + λ Σ_i f_i,  ‖d_i‖ = 1.

    loss: the mean over tokens of these sums over features and latents. λ is `sparsity_coefficient`: it means the same
    only for inputs of one scale, which in the April 2024 update is E‖x‖ = √d_in (training's `normalize`), with λ = 5.
    Terms: `mse` (‖x − x̂‖²), `l1` (Σ f_i ‖d_i‖, without λ).

    At the start: rows of W_dec point in random directions with norm 0.1 ("2023": 1, and they are kept there, with the
    parallel part of the gradient removed), those of W_enc in the same with norm 0.1, and b_enc is such that each latent
    is active on a share `initial_density` of the first batch (see `bias_of_density`).

    Memory: an active latent of a token takes 8 bytes (value and index), 6 in 16 bits; at the peak of a step, in the
    backward, about 33. Where many are active, the batch goes through in chunks, in GEMMs where these are faster (see
    `ByTokens`), two matrices of a chunk at a time.

    Source: Anthropic, Circuits Updates April 2024, "Update on how we train SAEs"; Bricken et al., Towards
    Monosemanticity (2023).
    """

    Config: ClassVar[type[CoderConfig]] = ReLUConfig
    architecture: ClassVar[str] = "relu"
    config: ReLUConfig

    def __init__(self, config: ReLUConfig) -> None:
        super().__init__(config)
        self.free_norms = config.variant == "april_2024"
        if not self.free_norms:
            self.unit_norm_rows = ("W_dec",)
        rows = unit_rows(torch.randn(config.d_sae, config.d_in))
        self.W_enc = nn.Parameter(INITIAL_NORM * rows)
        self.b_enc = nn.Parameter(torch.zeros(config.d_sae))
        self.W_dec = nn.Parameter(INITIAL_NORM * rows if self.free_norms else rows)
        self.b_dec = nn.Parameter(torch.zeros(config.d_in))

    def encoder_input(self, x: Tensor) -> Tensor:
        """What W_enc is applied to: x itself, in the form of 2023 with the decoder's bias taken off, unless
        `subtract_b_dec` says otherwise."""
        x = self.check_input(x)
        return x if (minus := self._minus()) is None else x - minus

    @torch.no_grad()
    def initialise(self, x: Tensor, target: Tensor) -> None:
        """b_dec, and b_enc to match."""
        super().initialise(x, target)
        self.b_enc.copy_(bias_of_density(x, self.W_enc, self.config.initial_density, self._minus()))

    @torch.no_grad()
    def resample(self, latents: Tensor, x: Tensor, target: Tensor, *, living: Tensor) -> None:
        """See `SparseCoder.resample`. The encoder rows are of x − b_dec in both forms."""
        if self.config.subtract_b_dec:
            return super().resample(latents, x, target, living=living)
        super().resample(latents, x - self.b_dec.to(x.dtype), target, living=living)
        self.b_enc[latents] = -(self.W_enc[latents] @ self.b_dec)

    def encode(self, x: Tensor) -> SparseCodes:
        """x (…, d_in) → ragged codes, all of them positive."""
        return encode(self.encoder_input(x), self.W_enc, self.b_enc, Threshold(0.0))

    def terms(self, x: Tensor, target: Tensor) -> Terms:
        """See `ByTokens`."""
        codes = self.encode(x)
        reconstruction = self.reconstruct(codes, x)
        return Terms(
            {"mse": squared_error(reconstruction, target), "l1": l1(codes, self._norms())}, codes, reconstruction
        )

    def full_terms(self, x: Tensor, target: Tensor, full: Full) -> Terms:
        """See `ByTokens`."""
        acts = relu_(full.pre_acts(x, self.W_enc, self.b_enc, self._minus()))
        norms = full.shared("norms", self._norms)
        reconstruction, penalty = full.decode_and_cost(acts, self.W_dec, self.b_dec, norms)
        return Terms({"mse": squared_error(reconstruction, target), "l1": penalty}, acts, reconstruction)

    def combined(self, parts: Parts) -> Tensor:
        """‖x − x̂‖² + λ Σ f_i ‖d_i‖."""
        return parts["mse"] + self.sparsity * parts["l1"]

    def encoders(self, x: Tensor) -> list[Encoder]:
        """See `ByTokens`."""
        return [Encoder(x, self.W_enc, self.b_enc, minus=self._minus())]

    def _norms(self) -> Tensor | None:
        return row_norms(self.W_dec) if self.free_norms else None

    def _minus(self) -> Tensor | None:
        return self.b_dec if self.config.subtract_b_dec else None

    def fold(self, input: Affine, target: Affine) -> None:
        """See `SparseCoder.fold`."""
        if self.config.subtract_b_dec:
            fold_autoencoder(self.W_enc, self.W_dec, self.b_dec, input)
        else:
            fold_encoder(self.W_enc, self.b_enc, input)
            fold_decoder(self.W_dec, self.b_dec, target)
        if scale := target.common_scale():
            rescale_latents(1 / scale, (self.W_enc, self.b_enc), self.W_dec)
