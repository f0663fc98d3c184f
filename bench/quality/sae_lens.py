"""SAELens' training SAEs, with the step of its `SAETrainer`."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from bench.quality.budget import CLIP, Job
from bench.quality.trainee import Scale, set_rate


class SAELens:
    """`coefficients` are those its trainer would schedule; they rise here as every penalty does."""

    scale: Scale = "sqrt_d"

    def __init__(self, job: Job, architecture: str, keys: dict[str, Any], coefficients: dict[str, float]) -> None:
        self._saes = importlib.import_module("sae_lens.saes.sae")
        torch.manual_seed(job.seed)
        self.job, self.coefficients = job, coefficients
        cls, config = importlib.import_module("sae_lens.registry").get_sae_training_class(architecture)
        self.sae = cls(config(d_in=job.d_in, d_sae=job.budget.d_sae, **keys)).train()
        self.optimizer = torch.optim.Adam(self.sae.parameters())

    def step(self, step: int, x: Tensor, y: Tensor, dead: Tensor) -> Tensor:
        """As its `_train_step`."""
        now = {name: value * self.job.ramp(step) for name, value in self.coefficients.items()}
        out = self.sae.training_forward_pass(self._saes.TrainStepInput(x, now, dead, step, False))
        self.optimizer.zero_grad()
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(self.sae.parameters(), CLIP)
        set_rate(self.optimizer, self.job.rate(step))
        self.optimizer.step()
        return out.feature_acts.detach().to_dense().bool().any(0)

    def infer(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As the SAE it saves: after BatchTopK, with its running threshold."""
        acts, pre_acts = self.sae.eval().encode_with_hidden_pre(x)
        threshold = getattr(self.sae, "topk_threshold", None)
        if threshold is not None:
            acts = pre_acts.relu() * (pre_acts > threshold)
        acts = acts.to_dense()
        return acts.bool().sum(1), self.sae.decode(acts)
