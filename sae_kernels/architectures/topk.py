"""`topk`: the TopK sparse autoencoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..codes import SparseCodes
from ..ops import TopK, encode
from ._affine import Affine, fold_autoencoder, rescale_latents
from ._base import CoderConfig, Loss, SparseCoder
from ._rows import remove_parallel, unit_rows
from ._topk_loss import auxk, fvu


@dataclass(frozen=True)
class TopKConfig(CoderConfig):
    """`k` active latents a token; `k_aux` dead ones fit the residual (None: d_in / 2, at most d_sae), weighted by
    `auxk_coefficient` (0: off); `normalize_decoder` keeps the rows of W_dec at norm 1."""

    k: int
    k_aux: int | None = None
    auxk_coefficient: float = 1 / 32
    normalize_decoder: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_k()
        if self.k_aux is not None:
            self.require_k("k_aux")
        self.require_not_negative("auxk_coefficient")
        self.require_bool("normalize_decoder")

    @property
    def aux_width(self) -> int:
        """k_aux with its default filled in."""
        return self.k_aux if self.k_aux is not None else max(1, min(self.d_in // 2, self.d_sae))


class TopKCoder(SparseCoder):
    """f = ReLU(TopK(W_enc (x − b_dec) + b_enc));  x̂ = f W_dec + b_dec.

    loss = Σ‖x − x̂‖² / Σ‖x − x̄‖² + α · Σ‖e − ê‖² / Σ‖x − x̄‖², where e = x − x̂ (no gradient), ê = f_dead W_dec and
    f_dead are the top k_aux latents among the dead; both selections come from one pass over x W_encᵀ.

    Source: arXiv 2406.04093.
    """

    Config: ClassVar[type[CoderConfig]] = TopKConfig
    architecture: ClassVar[str] = "topk"
    config: TopKConfig

    def __init__(self, config: TopKConfig) -> None:
        super().__init__(config)
        directions = unit_rows(torch.randn(config.d_sae, config.d_in))
        self.W_enc = nn.Parameter(directions.clone())
        self.b_enc = nn.Parameter(torch.zeros(config.d_sae))
        self.W_dec = nn.Parameter(self._initial_decoder(directions))
        self.b_dec = nn.Parameter(torch.zeros(config.d_out))

    def _initial_decoder(self, directions: Tensor) -> Tensor:
        """The encoder's transpose, in the rule of rows: the same rows."""
        return directions.clone()

    def encoder_input(self, x: Tensor) -> Tensor:
        """What W_enc is applied to: the input with the decoder's bias taken off."""
        return self.check_input(x) - self.b_dec

    def encode(self, x: Tensor) -> SparseCodes:
        """x (…, d_in) → fixed-width codes (…, k)."""
        return encode(self.encoder_input(x), self.W_enc, self.b_enc, TopK(self.config.k))

    def loss(self, x: Tensor, target: Tensor | None = None, *, dead: Tensor | None = None) -> Loss:
        """See the class. It selects latents itself, for both terms in one pass: a subclass with another `encode` writes
        its own `loss`. With `dead` None or all False there is no AuxK term. Terms: `fvu`, `auxk`."""
        target = self.check_target(x, target)
        inside = self.encoder_input(x)
        selections = [TopK(self.config.k)]
        if self.config.auxk_coefficient > 0 and dead is not None and bool(dead.any()):
            selections.append(TopK(self.config.aux_width, among=dead))
        codes, *aux = encode(inside, self.W_enc, self.b_enc, tuple(selections))
        reconstruction = self.reconstruct(codes, x)
        main = fvu(reconstruction, target)
        parts = {"fvu": main.detach()}
        total = main
        if aux:
            extra = auxk(aux[0], self.W_dec, reconstruction, target)
            parts["auxk"] = extra.detach()
            total = main + self.config.auxk_coefficient * extra
        return Loss(total, parts, codes, reconstruction)

    def before_step(self) -> None:
        """With `normalize_decoder`, the gradient's part along each row of W_dec is taken out."""
        if self.config.normalize_decoder:
            remove_parallel(self.W_dec)

    @torch.no_grad()
    def after_step(self) -> None:
        """Back to unit norm."""
        if self.config.normalize_decoder:
            self.W_dec.copy_(unit_rows(self.W_dec))

    def fold(self, input: Affine, target: Affine) -> None:
        """See `SparseCoder.fold`."""
        fold_autoencoder(self.W_enc, self.W_dec, self.b_dec, input)
        if scale := input.common_scale():
            rescale_latents(1 / scale, (self.W_enc, self.b_enc), self.W_dec)
