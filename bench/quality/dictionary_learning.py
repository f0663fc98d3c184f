"""dictionary_learning's trainers."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from bench.quality.budget import DECAY, WARMUP, Job
from bench.quality.trainee import Scale


class DictionaryLearning:
    """`trainer`: "module.Class" among its trainers."""

    scale: Scale = "unit"

    def __init__(self, job: Job, trainer: str, keys: dict[str, Any]) -> None:
        steps = job.budget.steps
        schedule = {"warmup_steps": WARMUP, "decay_start": int(steps * (1 - DECAY))}
        sizes = {"activation_dim": job.d_in, "dict_size": job.budget.d_sae, "layer": 3, "lm_name": "demo"}
        module, name = trainer.split(".")
        cls = getattr(importlib.import_module(f"dictionary_learning.trainers.{module}"), name)
        torch.manual_seed(job.seed)
        self.trainer = cls(steps=steps, lr=job.lr, device="cpu", **schedule, **sizes, **keys)

    def step(self, step: int, x: Tensor, y: Tensor, dead: Tensor) -> Tensor:
        """Its own, with the dead counted as everywhere."""
        if hasattr(self.trainer, "num_tokens_since_fired"):
            self.trainer.num_tokens_since_fired = torch.where(dead, 10**8, 0)
        self.trainer.update(step, x.clone())
        since = getattr(self.trainer, "num_tokens_since_fired", None)
        return torch.ones_like(dead) if since is None else since == 0

    def infer(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Its dictionary's forward pass."""
        reconstruction, acts = self.trainer.ae.eval()(x, output_features=True)
        return acts.bool().sum(1), reconstruction
