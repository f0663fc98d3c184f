"""What an architecture is: a module with an encoder, a decoder, a loss, and a frozen configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from ..codes import SparseCodes
from ..errors import ConfigError, ShapeError, describe, unknown
from ..ops import decode
from ._affine import Affine
from ._centre import CENTRES, centre
from ._resample import restart
from ._rows import remove_parallel, unit_rows
from ._sums import wide


@dataclass(frozen=True)
class CoderConfig:
    """Sizes every architecture has; each adds its own. Checked when built: a bad one never gets as far as a tensor.

    `b_dec_init`: what b_dec starts at, of the first batch's targets: their mean, geometric_median, or zero.
    """

    d_in: int
    d_sae: int
    b_dec_init: Literal["mean", "geometric_median", "zero"] = dataclasses.field(default="mean", kw_only=True)

    def __post_init__(self) -> None:
        for name in ("d_in", "d_sae"):
            self.require_positive(name)
        self.require_choice("b_dec_init", CENTRES)

    def require_positive(self, name: str) -> None:
        """ConfigError unless the field is an int ≥ 1."""
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} = {value!r}, expected a positive integer")

    def require_bool(self, name: str) -> None:
        """ConfigError unless the field is True or False."""
        if not isinstance(getattr(self, name), bool):
            raise ConfigError(f"{name} = {getattr(self, name)!r}, expected true or false")

    def require_choice(self, name: str, choices: Sequence[str]) -> None:
        """ConfigError unless the field is one of these; names the nearest."""
        value = getattr(self, name)
        if value not in choices:
            raise unknown(f"value of {name}", str(value), choices, ConfigError)

    def require_count(self, name: str) -> None:
        """ConfigError unless the field is an int ≥ 0."""
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ConfigError(f"{name} = {value!r}, expected an integer >= 0")

    def require_not_negative(self, name: str) -> None:
        """ConfigError unless the field is a finite number ≥ 0."""
        value = getattr(self, name)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (number and 0 <= value < float("inf")):
            raise ConfigError(f"{name} = {value!r}, expected a number >= 0")

    def require_k(self, name: str = "k") -> None:
        """ConfigError unless 1 ≤ k ≤ d_sae."""
        self.require_positive(name)
        if getattr(self, name) > self.d_sae:
            raise ConfigError(f"{name} = {getattr(self, name)}, expected at most d_sae = {self.d_sae}")

    @property
    def d_out(self) -> int:
        """Width of the reconstruction; a transcoder has its own."""
        return self.d_in

    @classmethod
    def build(cls, **fields: Any) -> Self:
        """From keyword values. Unknown or missing keys: ConfigError that names them and the nearest known one."""
        known = {field.name: field for field in dataclasses.fields(cls) if field.init}
        for name in fields:
            if name not in known:
                raise unknown(f"key of {cls.__name__}", name, known, ConfigError)
        missing = [
            name
            for name, field in known.items()
            if name not in fields
            and field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        ]
        if missing:
            raise ConfigError(f"{cls.__name__}: missing {', '.join(missing)}")
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """The fields, as `build` takes them."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.init}


@dataclass(frozen=True)
class Loss:
    """What `SparseCoder.loss` returns. `total` is differentiable; `parts` are its terms, detached, by name. Once a step
    has been taken, codes may be asked for `l0()` and `fired()` alone: see `ByTokens`."""

    total: Tensor
    parts: dict[str, Tensor]
    codes: SparseCodes
    reconstruction: Tensor


class SparseCoder(nn.Module):
    """Base of all architectures: x → codes → reconstruction of the target (x itself, or an MLP's output).

    Parameters, by the rule of rows: W_enc (d_sae, d_in), b_enc (d_sae,), W_dec (d_sae, d_out), b_dec (d_out,).
    A subclass sets `Config`, makes its parameters in `__init__`, and writes `encode` and `loss`; the rest has defaults.
    `metadata` is where it comes from (model, hook point, …), plain values that files keep and nothing computes with.
    """

    Config: ClassVar[type[CoderConfig]] = CoderConfig
    architecture: ClassVar[str] = ""  # the name it is registered under; saved files carry it
    kept_wide: ClassVar[tuple[str, ...]] = ()  # parameters and buffers in which steps are lost in 16 bits: thresholds
    unit_norm_rows: tuple[str, ...] = ()  # parameters (d_sae, …) whose rows training keeps at norm 1
    unit_norm_in_optimizer: bool = False  # set by who steps with an optimiser that does so itself

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor

    def __init__(self, config: CoderConfig) -> None:
        super().__init__()
        if not isinstance(config, self.Config):
            raise ConfigError(
                f"{type(self).__name__}: config is a {type(config).__name__}, expected {self.Config.__name__}"
            )
        self.config = config
        self.metadata: dict[str, Any] = {}

    @property
    def d_in(self) -> int:
        """Width of the input."""
        return self.config.d_in

    @property
    def d_out(self) -> int:
        """Width of the reconstruction."""
        return self.config.d_out

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.config.d_sae

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        """Every cast and move goes through here: what is named in `kept_wide` stays float32 at least."""
        kept = {name: getattr(self, name).data for name in self.kept_wide}
        super()._apply(fn, recurse)
        for name, before in kept.items():
            now = getattr(self, name)
            if now.dtype != wide(now.dtype):
                now.data = before.to(now.device, wide(now.dtype))
        return self

    def encode(self, x: Tensor) -> SparseCodes:
        """x (…, d_in) → codes over d_sae latents."""
        raise NotImplementedError(f"{type(self).__name__} must define encode")

    def decode(self, codes: SparseCodes) -> Tensor:
        """codes → (…, d_out): f W_dec + b_dec."""
        return decode(codes, self.W_dec, self.b_dec)

    def reconstruct(self, codes: SparseCodes, x: Tensor) -> Tensor:
        """The reconstruction from (possibly edited) codes of x; differs from `decode` where x itself enters (a
        skip)."""
        return self.decode(codes)

    def forward(self, x: Tensor) -> Tensor:
        """x (…, d_in) → reconstruction (…, d_out)."""
        return self.reconstruct(self.encode(x), x)

    def loss(self, x: Tensor, target: Tensor | None = None, *, dead: Tensor | None = None) -> Loss:
        """The training loss of a batch x (N, d_in), target (N, d_out) (None: x). `dead`: bool (d_sae,), for AuxK."""
        raise NotImplementedError(f"{type(self).__name__} must define loss")

    @torch.no_grad()
    def initialise(self, x: Tensor, target: Tensor) -> None:
        """Set what depends on data from the first batch; called once, before the first step. Here: b_dec, as
        `b_dec_init` says."""
        b_dec = getattr(self, "b_dec", None)
        if b_dec is not None:
            b_dec.copy_(centre(target, self.config.b_dec_init))

    def on_step(self, step: int, total_steps: int) -> None:
        """Before the loss of step 0 ≤ step < total_steps: a place for schedules. What it sets must follow from its
        arguments alone, so that a resumed run goes on as if it had never stopped."""

    def before_step(self) -> None:
        """After backward, before the optimiser: a place to edit gradients. Here: the part along each row of
        `unit_norm_rows` is taken out."""
        if not self.unit_norm_in_optimizer:
            for name in self.unit_norm_rows:
                remove_parallel(self.get_parameter(name))

    @torch.no_grad()
    def after_step(self) -> None:
        """After the optimiser: a place to renormalise. Here: `unit_norm_rows` go back to norm 1."""
        if not self.unit_norm_in_optimizer:
            for name in self.unit_norm_rows:
                rows = self.get_parameter(name)
                rows.copy_(unit_rows(rows))

    @torch.no_grad()
    def resample(self, latents: Tensor, x: Tensor, target: Tensor, *, living: Tensor) -> None:
        """Start dead latents (n,) int64 anew, each from a row of x (n, d_in) and target (n, d_out) that the coder
        reconstructs badly; `living` bool (d_sae,) are those whose norms are the measure. Here: see `_resample.restart`.
        """
        restart(self, latents, x, target, living)

    @classmethod
    def can_resample(cls) -> bool:
        """Whether `resample` fits (training refuses `resample_every` before it begins otherwise)."""
        return True

    def fold(self, input: Affine, target: Affine) -> None:
        """Rewrite the weights of a coder g trained on input(x) and target(y), so that it takes and gives what was not
        normalised: g(x) ← target⁻¹(g(input(x))), codes up to one common factor.

        Raises:
            ConfigError: this architecture cannot (training refuses `normalize` before it begins).
        """
        raise ConfigError(f'{type(self).__name__} does not define fold: train it with normalize = "none"')

    @classmethod
    def can_fold(cls) -> bool:
        """Whether `fold` is defined."""
        return cls.fold is not SparseCoder.fold

    def check_input(self, x: Tensor) -> Tensor:
        """x itself; ShapeError unless (…, d_in), so that nothing is broadcast to fit."""
        if x.dim() < 1 or x.shape[-1] != self.d_in:
            raise ShapeError(f"{type(self).__name__}: x is {describe(x)}, expected (…, {self.d_in})")
        return x

    def check_target(self, x: Tensor, target: Tensor | None) -> Tensor:
        """The target of x, x itself if None; ShapeError unless (…, d_out) with x's leading shape."""
        if target is None:
            if self.d_in != self.d_out:
                raise ShapeError(
                    f"{type(self).__name__}.loss: a target (…, {self.d_out}) is needed, d_in is {self.d_in}"
                )
            return x
        if target.shape != (*x.shape[:-1], self.d_out):
            raise ShapeError(
                f"{type(self).__name__}.loss: target is {describe(target)}, expected {(*x.shape[:-1], self.d_out)}"
            )
        return target

    def extra_repr(self) -> str:
        """Shown by print(sae)."""
        return ", ".join(f"{name}={value}" for name, value in self.config.to_dict().items())
