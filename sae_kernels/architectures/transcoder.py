"""`transcoder`: from an MLP's input to its output through sparse latents, optionally with a linear skip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..codes import SparseCodes
from ._affine import Affine, fold_decoder, fold_encoder, rescale_latents
from ._base import CoderConfig
from .topk import TopKCoder, TopKConfig


@dataclass(frozen=True)
class TranscoderConfig(TopKConfig):
    """As `TopKConfig`; `d_target` is the width of the target (None: d_in), `skip` adds W_skip x."""

    normalize_decoder: bool = False
    d_target: int | None = None
    skip: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_bool("skip")
        if self.d_target is not None:
            self.require_positive("d_target")

    @property
    def d_out(self) -> int:
        """Width of the target."""
        return self.d_in if self.d_target is None else self.d_target


class Transcoder(TopKCoder):
    """f = ReLU(TopK(W_enc x + b_enc));  ŷ = f W_dec + b_dec (+ W_skip x).

    loss: as `TopKCoder`, with the target y in the place of x. W_dec and W_skip start at 0, b_dec at the target's
    mean, so that training starts from the mean as its prediction.

    Source: transcoders arXiv 2406.11944, skip transcoders arXiv 2501.18823.
    """

    Config: ClassVar[type[CoderConfig]] = TranscoderConfig
    architecture: ClassVar[str] = "transcoder"
    config: TranscoderConfig  # pyright: ignore[reportIncompatibleVariableOverride]  (set once, never reassigned)
    W_skip: Tensor | None

    def __init__(self, config: TranscoderConfig) -> None:
        super().__init__(config)
        self.W_skip = nn.Parameter(torch.zeros(config.d_out, config.d_in)) if config.skip else None

    def _initial_decoder(self, directions: Tensor) -> Tensor:
        return torch.zeros(self.config.d_sae, self.config.d_out)

    def encoder_input(self, x: Tensor) -> Tensor:
        """x itself: b_dec lives in the target's space."""
        return self.check_input(x)

    def reconstruct(self, codes: SparseCodes, x: Tensor) -> Tensor:
        """Decoded codes, plus W_skip x with a skip."""
        y = self.decode(codes)
        return y if self.W_skip is None else y + x @ self.W_skip.mT

    @torch.no_grad()
    def fold(self, input: Affine, target: Affine) -> None:
        """See `SparseCoder.fold`; W_skip s_in (x − μ_in) / s_out goes into W_skip and b_dec."""
        fold_encoder(self.W_enc, self.b_enc, input)
        fold_decoder(self.W_dec, self.b_dec, target)
        if self.W_skip is not None:
            inside, outside = input.to(self.W_skip), target.to(self.W_skip)
            self.W_skip.mul_(inside.scale).div_(outside.scale[:, None])
            self.b_dec.sub_(self.W_skip @ inside.mean.to(self.W_skip))
        if scale := target.common_scale():
            rescale_latents(1 / scale, (self.W_enc, self.b_enc), self.W_dec)
