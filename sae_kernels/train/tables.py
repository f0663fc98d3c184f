"""The tables of a training configuration that have fixed keys."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from ..errors import ConfigError
from .gradients import ALWAYS
from .keys import key


@dataclass(frozen=True)
class TrainingTable:
    """`[training]`: how long, how fast, on what, and what is written down."""

    tokens: int | None = key(
        "train on this many tokens, rounded up to whole batches", None, unset="from `steps`", may_change=True
    )
    steps: int | None = key(
        "train this many steps; give this or `tokens`", None, unset="from `tokens`", may_change=True
    )
    batch_size: int = key("tokens in a batch: in a step of the optimiser", 4096)
    accumulate: int = key("equal parts in which a batch goes through, in turn; their losses are averaged", 1)
    normalize: Literal["none", "sqrt_d", "sqrt_d_centred"] = key(
        "scale activations so that E‖x‖ = √d, with the mean taken off first (centred); folded into the saved coder",
        "none",
    )
    normalize_tokens: int = key("tokens that the normalisation is estimated on", 100_000)
    optimizer: Literal["adam", "adam_rows"] = key("Adam by the kernel `adam_rows`, or torch's own (fused)", "adam_rows")
    lr: float | None = key("Adam's learning rate after warm-up", None, unset="2e-4 · √(16384 / d_sae)")
    lr_schedule: Literal["linear", "cosine", "constant"] = key("shape of the fall at the end", "linear")
    lr_warmup_steps: int = key("steps over which the rate rises linearly to `lr`", 100)
    lr_decay_fraction: float = key("last part of training, over which the rate falls towards 0", 0.2)
    betas: tuple[float, float] = key("Adam's decay rates of the two moments", (0.9, 0.999))
    eps: float = key("Adam's ε; small, since gradients of rarely used latents are", 6.25e-10)
    grad_clip: float | Literal["always", "none"] | None = key(
        'norm of all gradients together that they are scaled down to where they are longer ("none": never); "always": '
        "they are scaled to norm 1 in every step",
        "always",
    )
    dead_after_tokens: int = key("a latent that has not fired for so many tokens counts as dead", 10_000_000)
    resample_every: int | None = key("steps between fresh starts of dead latents", None, unset="never")
    resample_until: int | None = key("last step at which they are given", None, unset="half of all steps")
    resample_tokens: int = key("tokens among which those reconstructed worst are drawn", 32_768)
    log_every: int = key("steps between lines of metrics.jsonl", 10, may_change=True)
    checkpoint_every: int = key("steps between checkpoints", 1000, may_change=True)
    keep_checkpoints: int = key("how many of the newest checkpoints stay", 2, may_change=True)
    device: str = key("where the coder lives: cpu, cuda, cuda:1, …", "cpu", may_change=True)
    dtype: Literal["float32", "float64", "bfloat16"] = key(
        "of the weights; of Adam's moments, see Optimiser", "float32"
    )
    autocast: Literal["none", "bfloat16"] = key("dtype of the loss' computation, beside weights in `dtype`", "none")
    threads: int | None = key("CPU threads while training", None, unset="as torch has it", may_change=True)
    tensorboard: bool = key("write TensorBoard events into `<dir>/tensorboard`", False, may_change=True)

    def __post_init__(self) -> None:
        if self.grad_clip == "none":  # TOML has no null
            object.__setattr__(self, "grad_clip", None)
        if (self.tokens is None) == (self.steps is None):
            found = "neither" if self.tokens is None else "both"
            raise ConfigError(f"[training] tokens or steps: found {found}, expected one of them")
        for name in (
            "tokens",
            "steps",
            "batch_size",
            "accumulate",
            "normalize_tokens",
            "resample_every",
            "resample_until",
            "resample_tokens",
            "dead_after_tokens",
            "log_every",
            "checkpoint_every",
            "threads",
        ):
            self._require(name, "at least 1", lambda value: value >= 1)
        self._require("keep_checkpoints", "at least 1", lambda value: value >= 1)
        self._require("accumulate", f"a divisor of batch_size = {self.batch_size}", lambda n: self.batch_size % n == 0)
        if self.resample_until is not None and self.resample_every is None:
            raise ConfigError(f"[training] resample_until = {self.resample_until}, but there is no resample_every")
        self._require("lr", "a finite number > 0", lambda value: 0 < value < math.inf)
        self._require("lr_warmup_steps", "at least 0", lambda value: value >= 0)
        self._require("lr_decay_fraction", "a fraction from 0 to 1", lambda value: 0 <= value <= 1)
        self._require("betas", "two numbers in [0, 1)", lambda value: all(0 <= beta < 1 for beta in value))
        self._require("eps", "a finite number > 0", lambda value: 0 < value < math.inf)
        if self.grad_clip != ALWAYS:
            expected = 'a finite number > 0, "always" or "none"'
            self._require("grad_clip", expected, lambda value: 0 < value < math.inf)
        self._require("device", "a device torch knows", _is_device)

    def _require(self, name: str, expected: str, ok: Callable[[Any], bool]) -> None:
        value = getattr(self, name)
        if value is not None and not ok(value):
            raise ConfigError(f"[training] {name} = {value!r}, expected {expected}")

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        if self.steps is not None:
            return self.steps
        assert self.tokens is not None
        return -(-self.tokens // self.batch_size)

    def peak_lr(self, d_sae: int) -> float:
        """`lr`, or its default: 1/√d_sae as in arXiv 2406.04093, figure 3."""
        return 2e-4 * math.sqrt(16384 / d_sae) if self.lr is None else self.lr


@dataclass(frozen=True)
class OutputTable:
    """`[output]`: where everything is written."""

    dir: Path = key(  # noqa: RUF009
        "folder of the run; an earlier, unfinished run in it is continued", may_change=True
    )


def _is_device(name: str) -> bool:
    try:
        return torch.device(name).type != "meta"
    except RuntimeError:
        return False
