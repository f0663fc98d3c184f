"""`topk`: the TopK sparse autoencoder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from ..codes import SparseCodes
from ..ops import TopK, encode
from ._base import CoderConfig
from ._topk_base import TopKBase, TopKBaseConfig
from ._topk_loss import fvu

WIDER = 4  # Multi-TopK's second reconstruction has so many times k latents
WIDER_WEIGHT = 1 / 8


@dataclass(frozen=True)
class TopKConfig(TopKBaseConfig):
    """As `TopKBaseConfig`; `multi_topk` adds an eighth of the FVU with 4k latents."""

    multi_topk: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_bool("multi_topk")


class TopKCoder(TopKBase):
    """f = ReLU(TopK(W_enc (x − b_dec) + b_enc));  x̂ = f W_dec + b_dec.

    loss = L(k) + α · AuxK, with Multi-TopK L(k) + L(4k) / 8 + α · AuxK, where L(k) = Σ‖x − x̂‖² / Σ‖x − x̄‖² with k
    latents a token (the batch's FVU; 4k is at most d_sae) and AuxK as in `TopKBase`, on the residual with k. All
    selections come from one pass over x W_encᵀ. Terms: `fvu`, `multi_topk` (L(4k), unweighted), `auxk` (unweighted).

    Whether the ReLU comes before or after the choice makes no difference to f; here it is after, and a chosen latent
    that it sets to 0 gets no gradient.

    Source: arXiv 2406.04093.
    """

    Config: ClassVar[type[CoderConfig]] = TopKConfig
    architecture: ClassVar[str] = "topk"
    config: TopKConfig

    def encode(self, x: Tensor) -> SparseCodes:
        """x (…, d_in) → fixed-width codes (…, k)."""
        return encode(self.encoder_input(x), self.W_enc, self.b_enc, TopK(self.k))

    def selections(self) -> tuple[TopK, ...]:
        """k, and with Multi-TopK 4k."""
        narrow = TopK(self.k)
        return (narrow, TopK(min(WIDER * self.k, self.d_sae))) if self.config.multi_topk else (narrow,)

    def fidelity(
        self, codes: tuple[SparseCodes, ...], x: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """FVU with k, plus an eighth of that with 4k."""
        reconstruction = self.reconstruct(codes[0], x)
        main = fvu(reconstruction, target)
        if len(codes) == 1:
            return reconstruction, main, {"fvu": main}
        wider = fvu(self.reconstruct(codes[1], x), target)
        return reconstruction, main + WIDER_WEIGHT * wider, {"fvu": main, "multi_topk": wider}
