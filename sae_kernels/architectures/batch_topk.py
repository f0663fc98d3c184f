"""`batch_topk`: the BatchTopK sparse autoencoder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..codes import SparseCodes
from ..errors import ConfigError
from ..ops import BatchTopK, Threshold, encode
from ._base import CoderConfig, Loss
from ._topk_base import TopKBase, TopKBaseConfig
from ._topk_loss import fvu

UNSET = -1.0  # θ before any batch; a threshold is positive


@dataclass(frozen=True)
class BatchTopKConfig(TopKBaseConfig):
    """As `TopKBaseConfig`, `k` being the mean over a batch; `threshold_decay` is that of the running threshold."""

    threshold_decay: float = field(default=0.999, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_not_negative("threshold_decay")
        if self.threshold_decay >= 1:
            raise ConfigError(f"threshold_decay = {self.threshold_decay!r}, expected 0 <= threshold_decay < 1")


class BatchTopKCoder(TopKBase):
    """a = ReLU(W_enc (x − b_dec) + b_enc);  x̂ = f W_dec + b_dec.

    In training f are the k·N largest of all a of a batch of N tokens; in eval mode f = a · 1[a > θ], so that a token's
    codes do not hang on its neighbours. Ties at the boundary go to the earlier token, then the smaller latent.

    loss = Σ‖x − x̂‖² / Σ‖x − x̄‖² + α · AuxK: the batch's FVU, as in `topk`, where the paper has the mean squared error
    (so that α weighs AuxK the same whatever the activations' scale), and AuxK as in `TopKBase`. The selection is always
    that of training, in eval mode too. Terms: `fvu`, `auxk` (unweighted).

    θ, the buffer `threshold` (float32 at least, whatever the weights are), is the paper's E[min{a kept, a > 0}] as a
    running mean: it starts as the first batch's smallest positive kept act m, and becomes β θ + (1 − β) m with every
    `loss` in training mode that gradients are recorded for, β = min(`threshold_decay`, (1 + t) / (10 + t)) after t
    batches: about the last tenth of a short run, the last 1 / (1 − decay) batches of a long one. A batch that keeps
    nothing positive changes nothing. θ is −1 before the first, and `encode` keeps the k·N largest in eval mode too. It
    receives no gradient.

    Source: arXiv 2412.06410.
    """

    Config: ClassVar[type[CoderConfig]] = BatchTopKConfig
    architecture: ClassVar[str] = "batch_topk"
    kept_wide: ClassVar[tuple[str, ...]] = ("threshold", "threshold_batches")  # a step of 1 − decay is lost in 16 bits
    config: BatchTopKConfig
    threshold: Tensor
    threshold_batches: Tensor

    def __init__(self, config: BatchTopKConfig) -> None:
        super().__init__(config)
        self.register_buffer("threshold", torch.full((), UNSET))
        self.register_buffer("threshold_batches", torch.zeros(()))  # a float: what formats store; exact up to 2²⁴

    def encode(self, x: Tensor) -> SparseCodes:
        """x (…, d_in) → ragged codes: a > θ in eval mode, once θ is set; in training mode the k·N largest of this
        batch. A loaded coder is in eval mode."""
        return encode(self.encoder_input(x), self.W_enc, self.b_enc, self._selection())

    def _selection(self) -> BatchTopK | Threshold:
        if self.training or bool(self.threshold < 0):
            return BatchTopK(self.k)
        return Threshold(self.threshold)

    def selections(self) -> tuple[BatchTopK, ...]:
        """The k·N largest."""
        return (BatchTopK(self.k),)

    def loss(self, x: Tensor, target: Tensor | None = None, *, dead: Tensor | None = None) -> Loss:
        """See the class."""
        loss = super().loss(x, target, dead=dead)
        if self.training and torch.is_grad_enabled():
            self._follow(loss.codes.values.detach())
        return loss

    def fidelity(
        self, codes: tuple[SparseCodes, ...], x: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """FVU."""
        reconstruction = self.reconstruct(codes[0], x)
        main = fvu(reconstruction, target)
        return reconstruction, main, {"fvu": main}

    @torch.no_grad()
    def _follow(self, kept: Tensor) -> None:
        """θ after one more batch, without the host waiting for the device."""
        if kept.numel() == 0:
            return
        theta, batches = self.threshold, self.threshold_batches
        least = torch.where(kept > 0, kept, torch.inf).min().to(theta)
        decay = ((1 + batches) / (10 + batches)).clamp_max(self.config.threshold_decay)
        moved = torch.where(theta < 0, least, least + decay * (theta - least))
        any_positive = torch.isfinite(least)
        theta.copy_(torch.where(any_positive, moved, theta))
        batches.add_(any_positive)

    def linear_in_latents(self) -> tuple[Tensor, ...]:
        """θ too."""
        return *super().linear_in_latents(), self.threshold
