"""Architectures that pay for sparsity in the loss: λ, and its warm-up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ._base import CoderConfig, SparseCoder


@dataclass(frozen=True)
class PenaltyConfig(CoderConfig):
    """`sparsity_coefficient` is λ; it rises linearly from 0 over the first `sparsity_warmup_steps` steps."""

    sparsity_coefficient: float
    sparsity_warmup_steps: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_not_negative("sparsity_coefficient")
        self.require_count("sparsity_warmup_steps")


class Penalised(SparseCoder):
    """Keeps `sparsity`, the λ of the step at hand: all of it outside training."""

    config: Any

    def __init__(self, config: PenaltyConfig) -> None:
        super().__init__(config)
        self.sparsity = float(config.sparsity_coefficient)

    def on_step(self, step: int, total_steps: int) -> None:
        """λ of this step."""
        self.sparsity = self.config.sparsity_coefficient * ramp(step, self.config.sparsity_warmup_steps)


def ramp(step: int, steps: int) -> float:
    """From 1 / steps in step 0 to 1 in step `steps` − 1 and after; 1 throughout where `steps` is 0."""
    return min(1.0, (step + 1) / steps) if steps else 1.0
