"""Other SAE libraries, where they can be imported; the reason where they cannot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.gpu.problem import Problem
from bench.gpu.race import Contender
from bench.gpu.timing import told


def encoders(problem: Problem) -> dict[str, Contender]:
    """Each library's TopK encode of the same weights."""
    found = {}
    for name, make in {"sparsify": _sparsify, "SAELens": _saelens, "dictionary_learning": _dictionary_learning}.items():
        try:
            run = make(problem)
        except Exception as error:  # missing, or of another version than this was written for
            found[name] = Contender(lambda: None, why_not=told(error))
            continue
        found[name] = Contender(run, lambda acts: acts.sort(1).values, 4 * problem.dense_bytes)
    return found


def _fill(module: Any, problem: Problem, **weights: Tensor) -> Any:
    module = module.to(problem.device, problem.dtype)
    for name, value in weights.items():
        module.get_parameter(name).data.copy_(value)
    return module


def _sparsify(problem: Problem) -> Callable[[], Tensor]:
    from sparsify import SparseCoder, SparseCoderConfig

    config = SparseCoderConfig(num_latents=problem.size.d_sae, k=problem.size.k)
    coder = SparseCoder(problem.size.d, config, device=problem.device, dtype=problem.dtype)
    weights = {"encoder.weight": problem.W_enc, "encoder.bias": problem.b_enc}
    coder = _fill(coder, problem, **weights, b_dec=torch.zeros_like(problem.b_dec))
    return torch.no_grad()(lambda: coder.encode(problem.x).top_acts)


def _saelens(problem: Problem) -> Callable[[], Tensor]:
    from sae_lens import TopKSAE, TopKSAEConfig

    name = str(problem.dtype).removeprefix("torch.")
    size = problem.size
    config = TopKSAEConfig(d_in=size.d, d_sae=size.d_sae, k=size.k, dtype=name, device=str(problem.device))
    weights = {"W_enc": problem.W_enc.mT, "b_enc": problem.b_enc, "b_dec": torch.zeros_like(problem.b_dec)}
    sae = _fill(TopKSAE(config), problem, **weights)
    k = problem.size.k
    return torch.no_grad()(lambda: sae.encode(problem.x).topk(k, sorted=False).values)


def _dictionary_learning(problem: Problem) -> Callable[[], Tensor]:
    from dictionary_learning.trainers.top_k import AutoEncoderTopK

    coder = AutoEncoderTopK(problem.size.d, problem.size.d_sae, problem.size.k)
    weights = {"encoder.weight": problem.W_enc, "encoder.bias": problem.b_enc}
    coder = _fill(coder, problem, **weights)
    return torch.no_grad()(lambda: coder.encode(problem.x, return_topk=True)[1])
