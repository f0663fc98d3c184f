"""A run: what the trainer works on, and what life-cycle hooks receive."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..adapters import ActivationSource
from ..architectures import SparseCoder
from .batches import Batches
from .config import Config
from .log import finite
from .normalize import Normalization
from .random_state import Own


@dataclass(eq=False)
class Run:
    """The state of one training run.

    `step` and `tokens` count what has been trained on, over all resumes; `metrics` is the last line of
    metrics.jsonl; `outcome` is "running", then "finished", "interrupted" or "failed". `tokens_since_fired` is
    int64 (d_sae,). `coder` sees activations as `normalize` makes them (None: as they are); `random` are the random
    states that its steps run under; `resampled` counts latents started anew.
    """

    config: Config
    directory: Path
    source: ActivationSource
    coder: SparseCoder
    optimizer: torch.optim.Optimizer
    batches: Batches
    tokens_since_fired: Tensor
    normalize: Normalization | None = None
    random: Own = field(default_factory=Own)
    resampled: int = 0
    step: int = 0
    tokens: int = 0
    resumed_from: int | None = None
    outcome: str = "running"
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def total_steps(self) -> int:
        """Steps when finished."""
        return self.config.training.total_steps

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are."""
        return self.directory / "checkpoints"

    @property
    def log_path(self) -> Path:
        """metrics.jsonl."""
        return self.directory / "metrics.jsonl"

    def dead(self) -> Tensor:
        """Latents that have not fired in the last `dead_after_tokens` tokens: bool (d_sae,)."""
        return self.tokens_since_fired >= self.config.training.dead_after_tokens

    def summary(self) -> dict[str, Any]:
        """What run.json says: outcome, step, tokens, where the coder is, the last metrics."""
        return {
            "outcome": self.outcome,
            "step": self.step,
            "total_steps": self.total_steps,
            "tokens": self.tokens,
            "resumed_from": self.resumed_from,
            "seconds": round(self.seconds, 3),
            "coder": str(self.directory / "coder") if self.outcome == "finished" else None,
            "architecture": self.coder.architecture,
            "parameters": sum(parameter.numel() for parameter in self.coder.parameters()),
            "torch": torch.__version__,
            "metrics": finite(self.metrics),
        }
