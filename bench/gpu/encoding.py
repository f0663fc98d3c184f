"""encode, and topk of materialised scores, against what one writes in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import sae_kernels as sk
from bench.gpu import peers
from bench.gpu.problem import Problem
from bench.gpu.race import OURS, Comparison, Contender, Phases


def compiled(function: Callable[..., Any], problem: Problem) -> Callable[..., Any]:
    """Inductor on a GPU; in a dry run only traced."""
    return torch.compile(function, fullgraph=True, dynamic=False, backend="eager" if problem.dry else "inductor")


def sorted_values(found: Any) -> Tensor:
    """Values in order: among near-ties at rank k either choice of latents is right."""
    values = found.values if isinstance(found, sk.SparseCodes) else found[0]
    return values.flatten(1).sort(1).values if values.dim() > 1 else values.sort().values


def least(problem: Problem) -> Phases:
    """The products, with x and W_enc read once, and the codes written."""
    n, d, m, k = problem.size.n, problem.size.d, problem.size.d_sae, problem.size.k
    return [(2.0 * n * d * m, problem.item * (n * d + m * d) + n * k * (problem.item + 4))]


def top_k(x: Tensor, W: Tensor, b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The opponent: three lines of PyTorch."""
    values, indices = F.linear(x, W, b).topk(k, sorted=False)
    return values.relu(), indices


def encode(problem: Problem) -> Iterator[Comparison]:
    """TopK, Threshold, BatchTopK; `F.linear` alone computes less than all of them."""
    x, W, b, k = problem.x, problem.W_enc, problem.b_enc, problem.size.k
    n, dense = problem.size.n, problem.dense_bytes
    fast = compiled(top_k, problem)
    contenders = {
        OURS: Contender(lambda: sk.encode(x, W, b, sk.TopK(k)), sorted_values),
        "torch linear + topk": Contender(lambda: top_k(x, W, b, k), sorted_values, 2 * dense),
        "torch the same, compiled": Contender(lambda: fast(x, W, b, k), sorted_values, 2 * dense),
        "torch linear alone": Contender(lambda: F.linear(x, W, b), None, dense),
        **peers.encoders(problem),
    }
    yield Comparison("encode", "encode TopK", least(problem), contenders)

    theta = problem.theta

    def threshold() -> tuple[Tensor, Tensor]:
        z = F.linear(x, W, b)
        where = (z > theta).nonzero(as_tuple=True)
        return z[where], where[1]

    norm = lambda found: (found.values if isinstance(found, sk.SparseCodes) else found[0]).float().norm()  # noqa: E731
    contenders = {
        OURS: Contender(lambda: sk.encode(x, W, b, sk.Threshold(theta)), norm),
        "torch linear + nonzero": Contender(threshold, norm, 3 * dense),
    }
    yield Comparison("encode", "encode Threshold", least(problem), contenders, 2e-2)  # scores at θ may round over it

    def batch_top_k() -> tuple[Tensor, Tensor]:
        values, indices = F.linear(x, W, b).flatten().topk(k * n, sorted=False)
        return values.relu(), indices

    contenders = {
        OURS: Contender(lambda: sk.encode(x, W, b, sk.BatchTopK(k)), sorted_values),
        "torch linear + topk": Contender(batch_top_k, sorted_values, 6 * dense),
    }
    yield Comparison("encode", "encode BatchTopK", least(problem), contenders)


def topk(problem: Problem) -> Iterator[Comparison]:
    """Materialised scores, read once at least."""
    n, m, k = problem.size.n, problem.size.d_sae, problem.size.k
    whole = problem.dense_bytes
    for kind in ("normal", "ascending"):
        state: dict[str, Tensor] = {}

        def scores(kind: str = kind, state: dict[str, Tensor] = state) -> Tensor:
            if not state:
                rising = torch.linspace(-1, 1, m, device=problem.device).to(problem.dtype)
                made = problem.normal(n, m, seed=9) if kind == "normal" else rising.expand(n, m).contiguous()
                state["scores"] = made
            return state["scores"]

        contenders = {
            OURS: Contender(lambda s=scores: sk.topk(s(), k), sorted_values, 2 * whole),
            "torch.topk": Contender(lambda s=scores: torch.topk(s(), k, sorted=False), sorted_values, 2 * whole),
        }
        phases = [(0.0, float(whole + n * k * (problem.item + 4)))]
        yield Comparison("topk", f"topk, {kind} scores", phases, contenders, 0.0)
