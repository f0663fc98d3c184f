"""This package's coders, trained as its own `train` does it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import sae_kernels as sk
from bench.quality.budget import Job
from bench.quality.trainee import Scale, set_rate
from sae_kernels.train.adam_rows import AdamRows
from sae_kernels.train.gradients import clip
from sae_kernels.train.tables import TrainingTable

DEFAULT = TrainingTable(steps=1)


class Ours:
    """A coder with `AdamRows`, and training's default β, ε and clipping."""

    scale: Scale = "sqrt_d"

    def __init__(
        self, job: Job, architecture: str, keys: dict[str, Any], grad_clip: float | str | None = DEFAULT.grad_clip
    ) -> None:
        self.job, self.grad_clip = job, grad_clip
        target = {} if job.d_out == job.d_in and architecture != "clt" else {"d_target": job.d_out}
        sizes = {"d_in": job.d_in, "d_sae": job.budget.d_sae, **target}
        self.coder = sk.create(architecture, seed=job.seed, **sizes, **keys).train()
        self.coder.unit_norm_in_optimizer = True
        rows = [self.coder.get_parameter(name) for name in self.coder.unit_norm_rows]
        self.optimizer = AdamRows(self.coder.parameters(), betas=DEFAULT.betas, eps=DEFAULT.eps, unit_norm=rows)

    def step(self, step: int, x: Tensor, y: Tensor, dead: Tensor) -> Tensor:
        """As `train.step.take_step`."""
        if step == 0:
            self.coder.initialise(x, y)
        self.coder.on_step(step, self.job.budget.steps)
        loss = self.coder.loss(x, y, dead=dead)
        self.optimizer.zero_grad()
        loss.total.backward()
        self.coder.before_step()
        clip(self.coder.parameters(), self.grad_clip)
        set_rate(self.optimizer, self.job.rate(step))
        self.optimizer.step()
        self.coder.after_step()
        return loss.codes.fired()

    def infer(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """In eval mode."""
        codes = self.coder.eval().encode(x)
        return codes.l0(), self.coder.reconstruct(codes, x)
