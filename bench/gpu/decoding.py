"""decode and its backward, against a dense matmul and `F.embedding_bag`; and what determinism costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import sae_kernels as sk
from bench.gpu.problem import Problem
from bench.gpu.race import OURS, Comparison, Contender


def bag(problem: Problem, values: Tensor, W: Tensor, b: Tensor) -> Tensor:
    """The sparse opponent."""
    return F.embedding_bag(problem.indices, W, per_sample_weights=values, mode="sum") + b


def gather_bytes(problem: Problem) -> float:
    """One row of d numbers read for every slot, as if no cache helped."""
    return float(problem.size.n * problem.size.k * (problem.size.d * problem.item + problem.item + 4))


def forward(problem: Problem) -> Iterator[Comparison]:
    """The roofline is that of the gather; hot latents (Zipf) come out of the L2 cache and may beat it."""
    codes, W, b = problem.codes, problem.W_dec, problem.b_dec
    dense = Dense(problem)
    contenders = {
        OURS: Contender(lambda: sk.decode(codes, W, b), _itself),
        "torch embedding_bag": Contender(lambda: bag(problem, codes.values, W, b), _itself),
        "torch dense matmul": Contender(lambda: dense.acts @ W + b, _itself, 2 * problem.dense_bytes),
    }
    moved = gather_bytes(problem) + problem.size.n * problem.size.d * problem.item
    yield Comparison("decode", "decode", [(0.0, moved)], contenders)


def backward(problem: Problem) -> Iterator[Comparison]:
    """Gradients of the values, W_dec and b_dec from one cotangent; the forward is outside the timing."""
    size = problem.size
    dense = Dense(problem)
    leaves = [t.detach().clone().requires_grad_() for t in (problem.codes.values, problem.W_dec, problem.b_dec)]
    values, W, b = leaves
    codes = problem.codes.with_values(values)

    def of(forward: Callable[[], Tensor], wanted: Callable[[], list[Tensor]]) -> Callable[[], tuple[Tensor, ...]]:
        kept: list[Tensor] = []

        def run() -> tuple[Tensor, ...]:
            if not kept:
                kept.append(forward())
            return torch.autograd.grad(kept[0], wanted(), problem.cotangent, retain_graph=True)

        return run

    second: Callable[[Any], Tensor] = lambda grads: grads[1]  # noqa: E731
    ours = of(lambda: sk.decode(codes, W, b), lambda: leaves)
    sparse = of(lambda: bag(problem, values, W, b), lambda: leaves)
    full = of(lambda: dense.leaf @ W + b, lambda: [dense.leaf, W, b])
    contenders = {
        OURS: Contender(ours, second),
        "torch embedding_bag": Contender(sparse, second),
        "torch dense matmul": Contender(full, second, 3 * problem.dense_bytes),
    }
    # taken latent by latent a gathered row serves both gradients; W_dec read and its gradient written, once each
    moved = gather_bytes(problem) + 2 * size.d_sae * size.d * problem.item
    yield Comparison("decode backward", "decode backward", [(0.0, moved)], contenders)


def determinism(problem: Problem) -> Iterator[Comparison]:
    """codesᵀ @ X: our fixed order of summation against float atomics, into float32 as ours sums."""
    size, codes, X = problem.size, problem.codes, problem.cotangent
    ops, flat = torch.ops.sae_kernels, problem.indices.flatten()

    def atomics() -> Tensor:
        products = (codes.values.unsqueeze(2) * X.unsqueeze(1)).reshape(-1, size.d)
        return torch.zeros(size.d_sae, size.d, dtype=X.dtype, device=X.device).index_add_(0, flat, products)

    def chunked() -> Tensor:
        """A slot of every token at a time: the (N, k, d) tensor never exists."""
        out = torch.zeros(size.d_sae, size.d, dtype=torch.float32, device=X.device)
        for slot in range(size.k):
            out.index_add_(0, problem.indices[:, slot], codes.values[:, slot : slot + 1].float() * X.float())
        return out.to(X.dtype)

    products_bytes = 2 * size.n * size.k * size.d * problem.item
    contenders = {
        OURS: Contender(lambda: ops.spmm_t(codes.values, codes.indices, None, X, size.d_sae), _itself),
        "index_add_ slot by slot (float32 atomics)": Contender(chunked, _itself),
        "index_add_ of all products (atomics)": Contender(
            atomics, _itself, products_bytes, None if problem.dtype == torch.float32 else "sums in bfloat16"
        ),
    }
    moved = gather_bytes(problem) + size.d_sae * size.d * problem.item
    yield Comparison("determinism", "W_dec's gradient (spmm_t)", [(0.0, moved)], contenders)


class Dense:
    """The (N, M) tensor of acts, made when a contender that fits asks for it."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._acts: Tensor | None = None

    @property
    def acts(self) -> Tensor:
        if self._acts is None:
            self._acts = self._problem.acts()
        return self._acts

    @property
    def leaf(self) -> Tensor:
        """The same, wanting its gradient."""
        return self.acts.requires_grad_()


def _itself(found: Any) -> Tensor:
    return found
