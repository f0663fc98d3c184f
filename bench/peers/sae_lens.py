"""SAELens: TopK, BatchTopK, JumpReLU, standard and gated, with its defaults."""

from __future__ import annotations

import copy
import importlib
from typing import Any, Self

import torch
from torch import Tensor, nn

import sae_kernels as sk
from bench.peers.host import Host, Learner, fill
from bench.peers.problem import Problem


def _made(file: str, name: str, problem: Problem, **keys: Any) -> Any:
    """`sae_lens.saes.<file>.<name>` with its config's defaults, but for what the problem says."""
    home = importlib.import_module(f"sae_lens.saes.{file}")
    size, dtype = problem.size, str(problem.dtype).removeprefix("torch.")
    sae = getattr(home, name)(getattr(home, f"{name}Config")(d_in=size.d, d_sae=size.d_sae, dtype=dtype, **keys))
    b_enc = sae.b_gate if hasattr(sae, "b_gate") else sae.b_enc
    fill(problem, sae.W_enc.mT, b_enc, sae.W_dec, sae.b_dec)
    return sae


class Trained(Learner):
    """By SAELens' `SAETrainer`: its step also counts how often each latent fires."""

    def __init__(self, module: Any, problem: Problem) -> None:
        config = importlib.import_module("sae_lens.config")
        trainer = importlib.import_module("sae_lens.training.sae_trainer")
        saes = importlib.import_module("sae_lens.saes.sae")
        n = problem.size.n
        settings = config.SAETrainerConfig(total_training_samples=1000 * n, train_batch_size_samples=n, lr_end=3e-5)
        self.module, self._problem, self._step_input = module, problem, saes.TrainStepInput
        self._trainer = trainer.SAETrainer(settings, module, data_provider=iter(()))

    def patched(self) -> Self:
        """Another trainer, of a patched copy: its W_enc lies in memory by latents then, and would for the plain one too
        if it had the same."""
        other = type(self)(copy.deepcopy(self.module), self._problem)
        sk.patch(other.module)
        return other

    def loss(self, x: Tensor) -> Tensor:
        """Of `training_forward_pass`, with no dead latents."""
        given = self._step_input(
            sae_in=x,
            coefficients={"l0": 1.0, "l1": 1.0},
            dead_neuron_mask=self._trainer.dead_neurons,
            n_training_steps=0,
            is_logging_step=False,
        )
        return self.module.training_forward_pass(given).loss  # pyright: ignore[reportCallIssue]

    def step(self, x: Tensor) -> object:
        """One of `fit`'s."""
        return self._trainer.step(x)


class SAELens(Host):
    """Any of them."""

    distribution = "sae-lens"

    def twin(self, module: nn.Module) -> nn.Module:
        """With weights of its own, for the same reason."""
        return copy.deepcopy(module)


class TopK(SAELens):
    """TopKSAE, TopKTrainingSAE."""

    name = "SAELens TopK"

    def reader(self, problem: Problem) -> nn.Module:
        """TopKSAE."""
        return _made("topk_sae", "TopKSAE", problem, k=problem.size.k)

    def learner(self, problem: Problem) -> Learner:
        """TopKTrainingSAE; by default its acts are rescaled by the norms of W_dec's rows."""
        return Trained(_made("topk_sae", "TopKTrainingSAE", problem, k=problem.size.k), problem)


class BatchTopK(SAELens):
    """BatchTopKTrainingSAE, in training."""

    name = "SAELens BatchTopK"
    ranks_batches = True

    def learner(self, problem: Problem) -> Learner:
        """BatchTopKTrainingSAE."""
        return Trained(_made("batchtopk_sae", "BatchTopKTrainingSAE", problem, k=float(problem.size.k)), problem)


class JumpReLU(SAELens):
    """JumpReLUSAE as it is loaded, JumpReLUTrainingSAE as it has become: with about k active latents."""

    name = "SAELens JumpReLU"
    like_ours = False

    def reader(self, problem: Problem) -> nn.Module:
        """All latents have one threshold."""
        return _jumping("JumpReLUSAE", problem)

    def learner(self, problem: Problem) -> Learner:
        """The step loss."""
        return Trained(_jumping("JumpReLUTrainingSAE", problem), problem)


class Standard(SAELens):
    """StandardTrainingSAE with about k active latents."""

    name = "SAELens standard"
    like_ours = False

    def learner(self, problem: Problem) -> Learner:
        """The threshold is in b_enc."""
        sae = _made("standard_sae", "StandardTrainingSAE", problem)
        with torch.no_grad():
            sae.b_enc.sub_(problem.threshold)
        return Trained(sae, problem)


class Gated(SAELens):
    """GatedSAE, GatedTrainingSAE with about k open gates."""

    name = "SAELens gated"
    like_ours = False

    def reader(self, problem: Problem) -> nn.Module:
        """The threshold is in b_gate."""
        return _gated("GatedSAE", problem)

    def learner(self, problem: Problem) -> Learner:
        """With its auxiliary term."""
        return Trained(_gated("GatedTrainingSAE", problem), problem)


class StandardFresh(Standard):
    """StandardTrainingSAE as it starts: half of all latents are active."""

    name = "SAELens std, fresh"

    def learner(self, problem: Problem) -> Learner:
        """No threshold."""
        return Trained(_made("standard_sae", "StandardTrainingSAE", problem), problem)


def _jumping(name: str, problem: Problem) -> Any:
    """All latents have one threshold."""
    sae = _made("jumprelu_sae", name, problem)
    with torch.no_grad():
        sae.threshold.fill_(problem.threshold)
    return sae


def _gated(name: str, problem: Problem) -> Any:
    """All gates have one threshold, all magnitudes are what the gates saw."""
    sae = _made("gated_sae", name, problem)
    with torch.no_grad():
        sae.b_mag.copy_(sae.b_gate)
        sae.b_gate.sub_(problem.threshold)
    return sae
