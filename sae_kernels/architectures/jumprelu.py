"""`jumprelu`: the JumpReLU sparse autoencoder, its thresholds trained by straight-through estimates."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..codes import SparseCodes
from ..errors import ConfigError
from ..ops import Threshold, encode
from ._affine import Affine, fold_autoencoder, fold_decoder, fold_encoder, rescale_latents
from ._base import CoderConfig
from ._by_tokens import ByTokens, Encoder, Parts, Terms
from ._centre import centre_pre_acts
from ._dense_terms import dense_terms
from ._full import Full
from ._penalty import Penalised, PenaltyConfig
from ._rows import unit_rows
from ._straight_through import full_jump, jump, window
from ._sums import row_norms, squared_error

SPARSITY_LOSSES = ("l0", "tanh", "quadratic")
OF_ONE_LOSS = {"l0_target": "quadratic", "tanh_scale": "tanh", "pre_act_coefficient": "tanh"}
PAPER = {"bandwidth": 0.06, "threshold_init": 1.0, "normalize_decoder": True}
ANTHROPIC = {
    "tanh_scale": 4.0,
    "pre_act_coefficient": 3e-6,
    "bandwidth": 2.0,
    "threshold_init": 0.3,
    "normalize_decoder": False,
}
INITIAL_NORM = {"l0": 0.5, "quadratic": 0.5, "tanh": 0.1}  # of the rows of W_enc
DEFAULTS: dict[str, dict[str, Any]] = {"l0": PAPER, "quadratic": PAPER, "tanh": ANTHROPIC}


@dataclass(frozen=True)
class JumpReLUConfig(PenaltyConfig):
    """`sparsity_loss` with its own keys (`l0_target`; `tanh_scale` c and `pre_act_coefficient` λ_p), and two numbers in
    units of the root mean square of the inputs' features (1 after `normalize`): `bandwidth` ε and `threshold_init`;
    `normalize_decoder` keeps the rows of W_dec at norm 1. None becomes the default of the loss, see `DEFAULTS`.
    `subtract_b_dec`: the encoder reads x − b_dec."""

    sparsity_loss: Literal["l0", "tanh", "quadratic"] = "l0"
    l0_target: float | None = None
    tanh_scale: float | None = None
    pre_act_coefficient: float | None = None
    bandwidth: float | None = None
    threshold_init: float | None = None
    normalize_decoder: bool | None = None
    subtract_b_dec: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_choice("sparsity_loss", SPARSITY_LOSSES)
        for name, loss in OF_ONE_LOSS.items():
            if getattr(self, name) is not None and self.sparsity_loss != loss:
                raise ConfigError(f"{name} belongs to sparsity_loss = {loss!r}, found {self.sparsity_loss!r}")
        if self.sparsity_loss == "quadratic" and self.l0_target is None:
            raise ConfigError("sparsity_loss = 'quadratic': missing l0_target")
        for name, default in DEFAULTS[self.sparsity_loss].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)  # once, before anybody has seen it
        for name in ("l0_target", "tanh_scale", "bandwidth", "threshold_init"):
            if getattr(self, name) is not None:
                self.require_not_negative(name)
                if getattr(self, name) == 0:
                    raise ConfigError(f"{name} = {getattr(self, name)!r}, expected a number > 0")
        if self.pre_act_coefficient is not None:
            self.require_not_negative("pre_act_coefficient")
        self.require_bool("normalize_decoder")
        self.require_bool("subtract_b_dec")


class JumpReLUCoder(ByTokens, Penalised):
    """z = W_enc x + b_enc;  f = z · 1[z > θ], θ = e^{log_theta};  x̂ = f W_dec + b_dec.

    loss: the mean over tokens of ‖x − x̂‖² plus, λ being `sparsity_coefficient` and L0 = Σ_i 1[z_i > θ_i],

    - "l0": λ L0. Terms: `mse`, `l0`.
    - "quadratic": λ (L̄0 / `l0_target` − 1)², L̄0 the batch's mean. Terms: `mse`, `quadratic` (without λ), `l0`.
    - "tanh": λ Σ_i tanh(c f_i ‖d_i‖) + λ_p Σ_i ReLU(θ_i − z_i) ‖d_i‖. Terms: `mse`, `tanh`, `pre_act` (both without
      coefficient).

    Gradients: f passes them to z where z > θ. θ's are straight-through estimates with a rectangle of width ε
    (`bandwidth`), K = 1[|z − θ| < ε/2]: ∂f/∂θ = −(θ/ε) K, ∂1[z > θ]/∂θ = −(1/ε) K, of pairs on both sides of θ. L0
    trains θ alone; the tanh penalty and the pre-act loss reach z, θ and ‖d_i‖. With "tanh" f's step passes its estimate
    to z too, as in its source: ∂f/∂z = 1[z > θ] + (θ/ε) K (bench/QUALITY.md has what that gains).

    So that thresholds move, and L0 with them:
    ε and the initial θ are in units of √(E‖x − b_dec‖² / d_in), which the first batch settles (`input_rms`, saved): it
    is the spread of pre-acts at the start, and a window far narrower than that holds no pairs, so that θ gets no
    gradient. The paper's ε = 1e-3, for inputs of norm 1 with d_in = 3584, is 0.06 in this unit; the ε = 2 of
    the tanh loss is as in its source, where E‖x‖ = √d_in and θ starts at 0.1. (Until `initialise` the unit is 1.)
    θ starts at two spreads, with 2 % of the latents active ("tanh": three, 0.1 %). The paper's start, 0.06, leaves half
    of them active, and a long way to go: Adam moves log θ by no more than the learning rate in a step.
    log_theta stays float32 whatever the other weights are, and under autocast: in bfloat16 a step of 1e-3 is lost.
    With 16-bit values ε is at least four of their steps around θ (see `_straight_through.window`).

    Memory, "l0" and "quadratic": 12 bytes for each pair with z > θ − ε/2 (index, z, f); at the peak of a step, in the
    backward, about 54. Where θ starts as small as in the paper, half of all pairs are such, and the batch goes through
    in chunks, in GEMMs where these are faster (see `ByTokens`), six matrices of a chunk at a time.
    "tanh" is dense by definition (every z < θ counts), and its ε = 2 wide: both are computed some latents at a time,
    with z computed again in the backward. Peak: about 150 MiB of scratch whatever N and d_sae, and some 33 bytes for
    each pair with z > θ. Time: five dense products of the size x W_encᵀ beside the encoder's own.

    At the start: unit rows in random directions in W_dec ("tanh": of norm 0.1, as in `relu`), the same at norm 1/2 in
    W_enc (0.1), so that what the first latents sum to is no longer than x, and b_enc such that pre-acts are
    W_enc (x − b_dec): 0 in the paper, where b_dec starts at 0.

    Source: arXiv 2407.14435 (l0, quadratic); Anthropic, Circuits Updates January 2025, "Dictionary Learning
    Optimization Techniques" (tanh, for E‖x‖ = √d_in).
    """

    Config: ClassVar[type[CoderConfig]] = JumpReLUConfig
    architecture: ClassVar[str] = "jumprelu"
    kept_wide: ClassVar[tuple[str, ...]] = ("log_theta", "input_rms")
    config: Any  # a JumpReLUConfig, whose None are filled in
    input_rms: Tensor

    def __init__(self, config: JumpReLUConfig) -> None:
        super().__init__(config)
        if config.normalize_decoder:
            self.unit_norm_rows = ("W_dec",)
        rows = unit_rows(torch.randn(config.d_sae, config.d_in))
        self.W_enc = nn.Parameter(INITIAL_NORM[config.sparsity_loss] * rows)
        self.b_enc = nn.Parameter(torch.zeros(config.d_sae))
        self.log_theta = nn.Parameter(torch.full((config.d_sae,), math.log(self.config.threshold_init)))
        self.W_dec = nn.Parameter(0.1 * rows if config.sparsity_loss == "tanh" else rows)
        self.b_dec = nn.Parameter(torch.zeros(config.d_in))
        self.register_buffer("input_rms", torch.ones(()))

    @property
    def theta(self) -> Tensor:
        """θ (d_sae,), float32 or float64."""
        return self.log_theta.exp()

    @torch.no_grad()
    def initialise(self, x: Tensor, target: Tensor) -> None:
        """b_dec, b_enc to match, and what ε and θ are measured in: the root mean square of x − b_dec in the first batch
        (1 if that is 0)."""
        super().initialise(x, target)
        if not self.config.subtract_b_dec:
            centre_pre_acts(self.W_enc, self.b_enc, self.b_dec)
        rms = (x - self.b_dec.to(x.dtype)).to(self.input_rms.dtype).square().mean().sqrt()
        self.input_rms.copy_(torch.where(rms > 0, rms, 1.0))
        self.log_theta.fill_(math.log(self.config.threshold_init * float(self.input_rms)))

    @torch.no_grad()
    def resample(self, latents: Tensor, x: Tensor, target: Tensor, *, living: Tensor) -> None:
        """See `SparseCoder.resample`. The encoder rows are of x − b_dec, and θ starts anew as many of their pre-acts'
        spreads, ‖w_i‖ `input_rms`, above 0 as it did at first."""
        centred = x if self.config.subtract_b_dec else x - self.b_dec.to(x.dtype)  # `encoder_input` does the rest
        super().resample(latents, centred, target, living=living)
        rows = self.W_enc[latents]
        self.b_enc[latents] = 0.0 if self.config.subtract_b_dec else -(rows @ self.b_dec)
        norms = rows.to(self.log_theta.dtype).norm(dim=1)
        spreads = self.input_rms * torch.where(norms > 0, norms, 1.0) / INITIAL_NORM[self.config.sparsity_loss]
        self.log_theta[latents] = (self.config.threshold_init * spreads).log()

    def encoder_input(self, x: Tensor) -> Tensor:
        """What W_enc is applied to: x itself, with `subtract_b_dec` the decoder's bias taken off."""
        x = self.check_input(x)
        return x if (minus := self._minus()) is None else x - minus

    def encode(self, x: Tensor) -> SparseCodes:
        """x (…, d_in) → ragged codes, all of them above their thresholds."""
        return encode(self.encoder_input(x), self.W_enc, self.b_enc, Threshold(self.theta))

    @property
    def may_be_full(self) -> bool:
        """Not with "tanh"."""
        return self.config.sparsity_loss != "tanh"

    def encoders(self, x: Tensor) -> list[Encoder]:
        """See `ByTokens`."""
        theta = self.theta.detach()
        if self.may_be_full:
            theta = theta - self._epsilon(x, theta) / 2
        return [Encoder(x, self.W_enc, self.b_enc, theta, self._minus())]

    def terms(self, x: Tensor, target: Tensor) -> Terms:
        """See `ByTokens`. The codes may have empty slots, where θ − ε/2 < z ≤ θ."""
        if self.config.sparsity_loss == "tanh":
            return self._tanh_terms(self.encoder_input(x), target)
        theta = self.theta
        epsilon = self._epsilon(x, theta)
        lowest = theta.detach() - epsilon / 2
        pre_acts = encode(self.encoder_input(x), self.W_enc, self.b_enc, Threshold(lowest))
        codes, reconstruction, l0 = jump(pre_acts, theta, epsilon, self.W_dec, self.b_dec)
        reconstruction = self._completed(reconstruction, x)
        return Terms({"mse": squared_error(reconstruction, target), "l0": l0}, codes, reconstruction)

    def full_terms(self, x: Tensor, target: Tensor, full: Full) -> Terms:
        """See `ByTokens`."""
        theta = self.theta
        z = full.pre_acts(x, self.W_enc, self.b_enc, self._minus())
        acts, l0 = full_jump(z, theta, self._epsilon(x, theta))
        reconstruction = self._completed(full.decode(acts, self.W_dec, self.b_dec), x)
        return Terms({"mse": squared_error(reconstruction, target), "l0": l0}, acts, reconstruction)

    def combined(self, parts: Parts) -> Tensor:
        """‖x − x̂‖² and the penalty of `sparsity_loss`; adds `quadratic`."""
        error = parts["mse"]
        if self.config.sparsity_loss == "tanh":
            return error + self.sparsity * parts["tanh"] + self.config.pre_act_coefficient * parts["pre_act"]
        if self.config.l0_target is None:
            return error + self.sparsity * parts["l0"]
        parts["quadratic"] = (parts["l0"] / self.config.l0_target - 1).square()
        return error + self.sparsity * parts["quadratic"]

    @torch.no_grad()
    def linear(self, x: Tensor, rows: int) -> Callable[[Parts], Tensor]:
        """See `ByTokens`. For the quadratic one L̄0 is counted first."""
        if (target := self.config.l0_target) is None:
            return self.combined
        l0 = sum(self.encode(part).values.numel() for part in x.split(rows)) / len(x)
        slope = self.sparsity * 2 * (l0 / target - 1) / target
        return lambda parts: parts["mse"] + slope * parts["l0"]

    def _tanh_terms(self, x: Tensor, target: Tensor) -> Terms:
        theta = self.theta
        codes = encode(x, self.W_enc, self.b_enc, Threshold(theta))
        terms = dense_terms(
            self.decode(codes),
            x,
            self.W_enc,
            self.b_enc,
            theta,
            row_norms(self.W_dec),
            self.W_dec.detach(),
            self._epsilon(x, theta),
            self.config.tanh_scale,
        )
        n = max(1, len(x))
        reconstruction = self._completed(terms.reconstruction, x)
        parts = {
            "mse": squared_error(reconstruction, target),
            "tanh": terms.tanh / n,
            "pre_act": terms.pre_act / n,
        }
        return Terms(parts, codes, reconstruction)

    def _minus(self) -> Tensor | None:
        return self.b_dec if self.config.subtract_b_dec else None

    def _completed(self, decoded: Tensor, x: Tensor) -> Tensor:
        """The reconstruction from decoded codes: a place to add what x itself says."""
        return decoded

    def _epsilon(self, x: Tensor, theta: Tensor) -> Tensor:
        """ε of each latent."""
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        return window(self.config.bandwidth * self.input_rms, theta, dtype)

    @torch.no_grad()
    def fold(self, input: Affine, target: Affine) -> None:
        """See `SparseCoder.fold`."""
        if self.config.subtract_b_dec:
            fold_autoencoder(self.W_enc, self.W_dec, self.b_dec, input)
        else:
            fold_encoder(self.W_enc, self.b_enc, input)
            fold_decoder(self.W_dec, self.b_dec, target)
        if scale := target.common_scale():
            rescale_latents(1 / scale, (self.W_enc, self.b_enc, self.input_rms), self.W_dec)
            self.log_theta.sub_(math.log(scale))
