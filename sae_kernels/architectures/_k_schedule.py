"""Architectures with k active latents a token: k, and its annealing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError
from ._base import CoderConfig, SparseCoder


@dataclass(frozen=True)
class KConfig(CoderConfig):
    """`k` active latents a token. With `k_anneal_from`, training begins with that many and goes linearly to k over the
    first `k_anneal_steps` steps."""

    k: int
    k_anneal_from: int | None = field(default=None, kw_only=True)
    k_anneal_steps: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_k()
        self.require_count("k_anneal_steps")
        if self.k_anneal_from is not None:
            self.require_k("k_anneal_from")
        if (self.k_anneal_from is None) != (self.k_anneal_steps == 0):
            raise ConfigError(
                f"k_anneal_from = {self.k_anneal_from!r} and k_anneal_steps = {self.k_anneal_steps}, "
                "expected both (k_anneal_steps >= 1) or neither"
            )

    def k_at(self, step: int) -> int:
        """k of step 0, 1, …: `k_anneal_from` in step 0, `k` from step `k_anneal_steps` on, rounded between them."""
        if self.k_anneal_from is None or step >= self.k_anneal_steps:
            return self.k
        return round(self.k_anneal_from + (self.k - self.k_anneal_from) * step / self.k_anneal_steps)


class KScheduled(SparseCoder):
    """Keeps `k`, that of the step at hand; the configuration's in eval mode, and where nobody calls `on_step`."""

    config: Any

    def __init__(self, config: KConfig) -> None:
        super().__init__(config)
        self._k_of_step = config.k

    @property
    def k(self) -> int:
        """Active latents a token, now."""
        return self._k_of_step if self.training else self.config.k

    def on_step(self, step: int, total_steps: int) -> None:
        """k of this step."""
        self._k_of_step = self.config.k_at(step)
