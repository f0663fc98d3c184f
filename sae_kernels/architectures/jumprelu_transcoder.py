"""`jumprelu_transcoder`: a transcoder with JumpReLU, optionally with a linear skip."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ._affine import Affine
from ._base import CoderConfig, SparseCoder
from ._centre import centre, centre_pre_acts
from ._rows import unit_rows
from .jumprelu import INITIAL_NORM, JumpReLUCoder, JumpReLUConfig
from .transcoder import Transcoder

# Latents that read a target's space learn what they are for later than an autoencoder's: at `JumpReLU`'s 1 most fall
# silent before, and L0 ends at 5, whatever the penalty (bench/QUALITY.md).
THRESHOLD_INIT = 0.3


@dataclass(frozen=True)
class JumpReLUTranscoderConfig(JumpReLUConfig):
    """As `JumpReLUConfig`, with `normalize_decoder` false and `threshold_init` 0.3 unless told otherwise; `d_target` is
    the width of the target (None: d_in), `skip` adds W_skip x."""

    d_target: int | None = field(default=None, kw_only=True)
    skip: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if self.normalize_decoder is None:
            object.__setattr__(self, "normalize_decoder", False)  # once, before anybody has seen it
        if self.threshold_init is None:
            object.__setattr__(self, "threshold_init", THRESHOLD_INIT)
        super().__post_init__()
        self.require_bool("skip")
        if self.d_target is not None:
            self.require_positive("d_target")
        if self.subtract_b_dec:
            raise ConfigError("subtract_b_dec = True, expected false: b_dec lives in the target's space")

    @property
    def d_out(self) -> int:
        """Width of the target."""
        return self.d_in if self.d_target is None else self.d_target


class JumpReLUTranscoder(JumpReLUCoder):
    """z = W_enc x + b_enc;  f = z · 1[z > θ], θ = e^{log_theta};  ŷ = f W_dec + b_dec (+ W_skip x).

    loss, gradients, thresholds and their unit: as `JumpReLUCoder`, with the target y in the place of x where it is
    reconstructed; `input_rms` is that of x − x̄, x̄ being what `b_dec_init` says, of the inputs.

    At the start: rows of norm 1/2 in random directions in W_enc, W_dec 0, as in `Transcoder` ("tanh": 0.1 in W_enc and,
    in other directions, in W_dec; with `normalize_decoder` 1 in W_dec); b_dec as `b_dec_init` says, of the targets;
    b_enc such that pre-acts are W_enc (x − x̄); W_skip 0. Decoder rows that began in directions of their own would say
    something about the target from the start, all of it wrong: most latents then fall silent before they are of use,
    and short runs end at a fifth of the L0 (bench/QUALITY.md).

    Source: Gemma Scope 2's transcoders; transcoders arXiv 2406.11944, skips arXiv 2501.18823, JumpReLU arXiv
    2407.14435.
    """

    Config: ClassVar[type[CoderConfig]] = JumpReLUTranscoderConfig
    architecture: ClassVar[str] = "jumprelu_transcoder"
    W_skip: Tensor | None

    def __init__(self, config: JumpReLUTranscoderConfig) -> None:
        super().__init__(config)
        d_out = self.config.d_out
        rows = unit_rows(torch.randn(config.d_sae, d_out))
        norm = 0.1 if config.sparsity_loss == "tanh" else float(self.config.normalize_decoder)
        self.W_dec = nn.Parameter(norm * rows)
        self.b_dec = nn.Parameter(torch.zeros(d_out))
        self.W_skip = nn.Parameter(torch.zeros(d_out, config.d_in)) if config.skip else None

    @torch.no_grad()
    def initialise(self, x: Tensor, target: Tensor) -> None:
        """b_dec, b_enc, and what ε and θ are measured in."""
        SparseCoder.initialise(self, x, target)
        middle = centre(x, self.config.b_dec_init)
        centre_pre_acts(self.W_enc, self.b_enc, middle)
        rms = (x - middle.to(x.dtype)).to(self.input_rms.dtype).square().mean().sqrt()
        self.input_rms.copy_(torch.where(rms > 0, rms, 1.0))
        self.log_theta.fill_(math.log(self.config.threshold_init * float(self.input_rms)))

    @torch.no_grad()
    def resample(self, latents: Tensor, x: Tensor, target: Tensor, *, living: Tensor) -> None:
        """See `SparseCoder.resample`; θ starts anew in the unit of the new rows' pre-acts."""
        SparseCoder.resample(self, latents, x, target, living=living)
        norms = self.W_enc[latents].to(self.log_theta.dtype).norm(dim=1)
        spreads = self.input_rms * torch.where(norms > 0, norms, 1.0) / INITIAL_NORM[self.config.sparsity_loss]
        self.log_theta[latents] = (self.config.threshold_init * spreads).log()

    reconstruct = Transcoder.reconstruct
    full_terms = JumpReLUCoder.full_terms  # which completes as `reconstruct` does

    def _completed(self, decoded: Tensor, x: Tensor) -> Tensor:
        return decoded if self.W_skip is None else decoded + x @ self.W_skip.mT

    @torch.no_grad()
    def fold(self, input: Affine, target: Affine) -> None:
        """See `SparseCoder.fold`; W_skip s_in (x − μ_in) / s_out goes into W_skip and b_dec."""
        super().fold(input, target)
        if self.W_skip is not None:
            inside, outside = input.to(self.W_skip), target.to(self.W_skip)
            self.W_skip.mul_(inside.scale).div_(outside.scale[:, None])
            self.b_dec.sub_(self.W_skip @ inside.mean.to(self.W_skip))
