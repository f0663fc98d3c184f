"""What is timed of a library: the same calls on its module and on a patched twin of it."""

from __future__ import annotations

import copy
import importlib.metadata
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

import sae_kernels as sk
from bench.peers.problem import Problem
from bench.peers.twin import twin

Call = Callable[[], Any]


class Learner:
    """A module in training by its library's own loss and optimiser."""

    module: nn.Module

    def patched(self) -> Self:
        """One that trains a patched twin of the module, with the same optimiser.

        Raises:
            BackendError: no patch takes it.
        """
        other = copy.copy(self)
        other.module = twin(self.module)
        sk.patch(other.module)
        return other

    def loss(self, x: Tensor) -> Tensor:
        """What the library would call `backward` of."""
        raise NotImplementedError

    def step(self, x: Tensor) -> object:
        """Loss, gradients, Adam, and whatever else the library does with each batch."""
        raise NotImplementedError


class Host:
    """One kind of coder of a library: `reader` makes one that encodes and decodes, `learner` one in training."""

    name: str  # as tables and the chart have it
    distribution: str
    like_ours: bool = True  # its training step and our trainer's do the same work
    ranks_batches: bool = False  # all tokens' pre-acts together: so many that some at the last rank are the same

    @property
    def version(self) -> str:
        """Of the library.

        Raises:
            importlib.metadata.PackageNotFoundError: it is not installed.
        """
        return importlib.metadata.version(self.distribution)

    def reader(self, problem: Problem) -> nn.Module | None:
        """With the problem's weights; None where the class is for training alone."""
        return None

    def twin(self, module: nn.Module) -> nn.Module:
        """The one to patch: a copy that shares the weights."""
        return twin(module)

    def reads(self, module: Any, x: Tensor) -> dict[str, Call]:
        """encode; decode of what encode gave; forward."""
        with torch.no_grad():
            acts = module.encode(x)
        return {"encode": lambda: module.encode(x), "decode": lambda: module.decode(acts), "forward": lambda: module(x)}

    def shown(self, result: Any) -> Tensor:
        """What of a result must agree."""
        return result

    def learner(self, problem: Problem) -> Learner | None:
        """With the problem's weights; None where the library doesn't train this class."""
        return None


@torch.no_grad()
def fill(problem: Problem, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor) -> None:
    """Copy the problem's weights into a module's, which come as the rule of rows has them (a view where need be)."""
    for own, given in ((W_enc, problem.W_enc), (b_enc, problem.b_enc), (W_dec, problem.W_dec), (b_dec, problem.b_dec)):
        own.copy_(given)
