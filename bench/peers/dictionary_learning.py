"""dictionary_learning: AutoEncoderTopK and its trainer."""

from __future__ import annotations

import copy
import importlib
from typing import Any, Self

from torch import Tensor, nn

import sae_kernels as sk
from bench.peers.host import Host, Learner, fill
from bench.peers.problem import Problem

STEP = 2000  # the trainer's threshold is updated from its 1000th step on


class Trained(Learner):
    """By dictionary_learning's `TopKTrainer`."""

    def __init__(self, problem: Problem) -> None:
        top_k = importlib.import_module("dictionary_learning.trainers.top_k")
        self._problem, size = problem, problem.size
        self._trainer = top_k.TopKTrainer(
            steps=100_000,
            activation_dim=size.d,
            dict_size=size.d_sae,
            k=size.k,
            layer=0,
            lm_name="none",
            device="cpu",
        )
        self.module = self._trainer.ae.to(problem.dtype)
        _fill(problem, self.module)

    def patched(self) -> Self:
        """Another trainer of the same problem, patched: its weights lie in memory by rows then, and would for the plain
        one too if it had the same."""
        other = type(self)(self._problem)
        sk.patch(other._trainer)
        return other

    def loss(self, x: Tensor) -> Tensor:
        """Squared error; AuxK where a latent is dead: none is."""
        return self._trainer.loss(x, step=STEP)

    def step(self, x: Tensor) -> object:
        """One of `trainSAE`'s."""
        return self._trainer.update(STEP, x)


class TopK(Host):
    """AutoEncoderTopK."""

    name, distribution = "dictionary_learning", "dictionary-learning"

    def reader(self, problem: Problem) -> nn.Module:
        """Encoding by rank, not by the threshold."""
        top_k = importlib.import_module("dictionary_learning.trainers.top_k")
        size = problem.size
        module = top_k.AutoEncoderTopK(size.d, size.d_sae, size.k).to(problem.dtype)
        _fill(problem, module)
        return module

    def twin(self, module: nn.Module) -> nn.Module:
        """With weights of its own, for the same reason."""
        return copy.deepcopy(module)

    def learner(self, problem: Problem) -> Learner:
        """The same class, in its trainer."""
        return Trained(problem)


def _fill(problem: Problem, module: Any) -> None:
    fill(problem, module.encoder.weight, module.encoder.bias, module.decoder.weight.mT, module.b_dec)
