"""What everybody gets: sizes, steps, the shape of the learning rate."""

from __future__ import annotations

from dataclasses import dataclass, field

from sae_kernels.train.schedule import lr_factor

WARMUP, DECAY = 20, 0.2  # of the learning rate: steps, and the last part of all
CLIP = 1.0  # largest norm of all gradients, of those whose library clips


@dataclass(frozen=True)
class Budget:
    """Sizes and steps."""

    d_sae: int = 768
    batch: int = 512
    steps: int = 300

    @property
    def sparsity_warmup(self) -> int:
        """Steps over which a penalty rises."""
        return max(1, self.steps // 5)

    @property
    def dead_after(self) -> int:
        """A latent that has not fired in so many steps counts as dead."""
        return max(1, self.steps // 4)


@dataclass(frozen=True)
class Job:
    """One training run."""

    setting: float
    lr: float
    seed: int
    d_in: int
    d_out: int
    n_layers: int
    budget: Budget = field(default_factory=Budget)

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        return self.lr * lr_factor(step, self.budget.steps, WARMUP, DECAY)

    def ramp(self, step: int) -> float:
        """What a penalty is multiplied by."""
        return min(1.0, (step + 1) / self.budget.sparsity_warmup)
