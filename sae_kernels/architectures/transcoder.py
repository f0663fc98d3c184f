"""`transcoder`: from an MLP's input to its output through sparse latents, optionally with a linear skip."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ..codes import SparseCodes
from ..errors import ConfigError
from ..ops import Threshold, encode
from ._affine import Affine, fold_decoder, fold_encoder, fold_subtracting, rescale_latents
from ._base import CoderConfig, Loss
from ._by_tokens import ByTokens, Encoder, Parts, Terms
from ._density import INITIAL, bias_of_density, require_share
from ._full import Full, relu_
from ._penalty import ramp
from ._rows import unit_rows
from ._sums import l1, squared_error
from .topk import TopKCoder, TopKConfig

ACTIVATIONS = ("topk", "relu")
INITIAL_NORM = 0.1  # of the rows of W_enc, with "relu"
OF_TOPK = {"k": None, "k_anneal_from": None, "k_aux": None, "multi_topk": False}  # and what each is if not given


@dataclass(frozen=True)
class TranscoderConfig(TopKConfig):
    """As `TopKConfig`; `d_target` is the width of the target (None: d_in), `skip` adds W_skip x.

    `activation` "topk" needs `k`. "relu" has no k and no AuxK, but `sparsity_coefficient`, λ, which rises linearly from
    0 over the first `sparsity_warmup_steps` steps, and `initial_density`, the share of tokens on which each latent
    starts out active (None: 0.05). `normalize_decoder` None: true with "relu", false with "topk".

    `subtract_b_dec` makes it an autoencoder that may have a skip: the encoder reads x − b_dec.
    """

    k: int | None = None  # pyright: ignore[reportIncompatibleVariableOverride]  (frozen: read only)
    normalize_decoder: bool | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    d_target: int | None = None
    skip: bool = False
    subtract_b_dec: bool = field(default=False, kw_only=True)
    activation: Literal["topk", "relu"] = field(default="topk", kw_only=True)
    sparsity_coefficient: float | None = field(default=None, kw_only=True)
    sparsity_warmup_steps: int = field(default=0, kw_only=True)
    initial_density: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        self.require_choice("activation", ACTIVATIONS)
        relu = self.activation == "relu"
        if self.normalize_decoder is None:
            object.__setattr__(self, "normalize_decoder", relu)
        if relu and self.initial_density is None:
            object.__setattr__(self, "initial_density", INITIAL)
        super().__post_init__()
        self.require_bool("skip")
        self.require_count("sparsity_warmup_steps")
        if self.d_target is not None:
            self.require_positive("d_target")
        if self.subtract_b_dec and self.d_out != self.d_in:
            raise ConfigError(f"subtract_b_dec = True with d_target = {self.d_target}, expected d_in = {self.d_in}")
        if relu:
            for name, unset in OF_TOPK.items():
                self._require_unset(name, unset)
            self.require_not_negative("sparsity_coefficient")
            require_share(self.initial_density)
        else:
            self._require_unset("sparsity_coefficient", None)
            self._require_unset("sparsity_warmup_steps", 0)
            self._require_unset("initial_density", None)

    def require_k(self, name: str = "k") -> None:
        """As in every configuration with a k, where there is one."""
        if self.activation == "topk":
            super().require_k(name)

    def _require_unset(self, name: str, unset: object) -> None:
        if (value := getattr(self, name)) != unset:
            raise ConfigError(f"{name} = {value!r} with activation = {self.activation!r}, which has no {name}")

    @property
    def d_out(self) -> int:
        """Width of the target."""
        return self.d_in if self.d_target is None else self.d_target


class Transcoder(ByTokens, TopKCoder):
    """f = ReLU(TopK(W_enc x + b_enc)), or f = ReLU(W_enc x + b_enc);  ŷ = f W_dec + b_dec (+ W_skip x).

    loss, activation "topk": as `TopKCoder`, with the target y in the place of x. W_dec and W_skip start at 0, b_dec at
    the target's mean, so that training starts from the mean as its prediction.

    loss, activation "relu": ‖y − ŷ‖² + λ ‖f‖₁, the mean over tokens of these sums over features and latents; terms
    `mse` and `l1` (without λ). λ is `sparsity_coefficient`, and means the same only for targets of one scale. ‖f‖₁
    means something only beside decoder rows whose norm is fixed: they start at norm 1 in random directions (not at 0,
    from where the first step would throw them to norm 1) and are kept there, unless `normalize_decoder` says no.
    Rows of W_enc start at norm 0.1, so that all latents together say little yet, and b_enc such that each latent is
    active on a share `initial_density` of the first batch (see `bias_of_density`).

    Source: transcoders arXiv 2406.11944, skip transcoders arXiv 2501.18823.
    """

    Config: ClassVar[type[CoderConfig]] = TranscoderConfig
    architecture: ClassVar[str] = "transcoder"
    config: TranscoderConfig  # pyright: ignore[reportIncompatibleVariableOverride]  (set once, never reassigned)
    W_skip: Tensor | None

    def __init__(self, config: TranscoderConfig) -> None:
        super().__init__(config)
        if config.activation == "relu":
            self.W_enc.data = INITIAL_NORM * unit_rows(self.W_enc.data)
        self.W_skip = nn.Parameter(torch.zeros(config.d_out, config.d_in)) if config.skip else None
        self.sparsity = float(config.sparsity_coefficient or 0.0)

    def _initial_decoder(self, directions: Tensor) -> Tensor:
        shape = self.config.d_sae, self.config.d_out
        return torch.zeros(shape) if self.config.activation == "topk" else unit_rows(torch.randn(shape))

    def _centre_encoder(self, x: Tensor) -> None:
        if self.config.initial_density is not None:
            self.b_enc.copy_(bias_of_density(x, self.W_enc, self.config.initial_density, self._minus()))

    def encoder_input(self, x: Tensor) -> Tensor:
        """x itself: b_dec lives in the target's space; x − b_dec with `subtract_b_dec`."""
        return super().encoder_input(x)

    def encode(self, x: Tensor) -> SparseCodes:
        """x (…, d_in) → fixed-width codes (…, k); with "relu" ragged ones, all of them positive."""
        if self.config.activation == "topk":
            return super().encode(x)
        return encode(self.encoder_input(x), self.W_enc, self.b_enc, Threshold(0.0))

    def reconstruct(self, codes: SparseCodes, x: Tensor) -> Tensor:
        """Decoded codes, plus W_skip x with a skip."""
        return self._completed(self.decode(codes), x)

    def _completed(self, decoded: Tensor, x: Tensor) -> Tensor:
        return decoded if self.W_skip is None else decoded + x @ self.W_skip.mT

    def on_step(self, step: int, total_steps: int) -> None:
        """k and λ of this step."""
        super().on_step(step, total_steps)
        self.sparsity = ramp(step, self.config.sparsity_warmup_steps) * (self.config.sparsity_coefficient or 0.0)

    def loss(self, x: Tensor, target: Tensor | None = None, *, dead: Tensor | None = None) -> Loss:
        """See the class; with "relu", `dead` makes no difference."""
        if self.config.activation == "topk":
            return TopKCoder.loss(self, x, target, dead=dead)
        return super().loss(x, target)

    def terms(self, x: Tensor, target: Tensor) -> Terms:
        """See `ByTokens`."""
        codes = self.encode(x)
        reconstruction = self.reconstruct(codes, x)
        return Terms({"mse": squared_error(reconstruction, target), "l1": l1(codes)}, codes, reconstruction)

    def full_terms(self, x: Tensor, target: Tensor, full: Full) -> Terms:
        """See `ByTokens`."""
        acts = relu_(full.pre_acts(x, self.W_enc, self.b_enc, self._minus()))
        decoded, penalty = full.decode_and_cost(acts, self.W_dec, self.b_dec, None)
        reconstruction = self._completed(decoded, x)
        return Terms({"mse": squared_error(reconstruction, target), "l1": penalty}, acts, reconstruction)

    def combined(self, parts: Parts) -> Tensor:
        """‖y − ŷ‖² + λ ‖f‖₁."""
        return parts["mse"] + self.sparsity * parts["l1"]

    def encoders(self, x: Tensor) -> list[Encoder]:
        """See `ByTokens`."""
        return [Encoder(x, self.W_enc, self.b_enc, minus=self._minus())]

    def _minus(self) -> Tensor | None:
        return self.b_dec if self.config.subtract_b_dec else None

    @torch.no_grad()
    def fold(self, input: Affine, target: Affine) -> None:
        """See `SparseCoder.fold`; W_skip s_in (x − μ_in) / s_out goes into W_skip and b_dec."""
        if self.config.subtract_b_dec:
            fold_subtracting(self.W_enc, self.b_enc, self.W_dec, self.b_dec, input, target)
        else:
            fold_encoder(self.W_enc, self.b_enc, input)
            fold_decoder(self.W_dec, self.b_dec, target)
        if self.W_skip is not None:
            inside, outside = input.to(self.W_skip), target.to(self.W_skip)
            self.W_skip.mul_(inside.scale).div_(outside.scale[:, None])
            shift = self.W_skip @ inside.mean.to(self.W_skip)
            self.b_dec.sub_(shift)
            if self.config.subtract_b_dec:
                self.b_enc.sub_(self.W_enc @ shift)
        if scale := target.common_scale():
            rescale_latents(1 / scale, (self.W_enc, self.b_enc), self.W_dec)
