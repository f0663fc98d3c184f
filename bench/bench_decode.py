"""decode, and its backward, against a dense matmul and `F.embedding_bag`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import sae_kernels as sk
from bench import cases
from bench.conftest import OURS, check

DRAWN = pytest.mark.parametrize("draw", ["uniform", "zipf"])


def dense(codes: sk.SparseCodes) -> Tensor:
    """(N, d_sae), made outside the timing."""
    return codes.dense()


def bag(codes: sk.SparseCodes, W: Tensor, b: Tensor) -> Tensor:
    return F.embedding_bag(codes.indices, W, per_sample_weights=codes.values, mode="sum") + b


@DRAWN
@torch.no_grad()
def test_forward(race: Callable, size: cases.Size, dtype: torch.dtype, draw: str) -> None:
    codes = cases.codes(size, dtype, draw, empty=0)
    _, _, W, b = cases.dictionary(size, dtype)
    acts = dense(codes)
    check(sk.decode(codes, W, b), acts @ W + b)
    contenders = {
        OURS: lambda: sk.decode(codes, W, b),
        "torch dense matmul": lambda: acts @ W + b,
        "torch embedding_bag": lambda: bag(codes, W, b),
    }
    race(f"decode, {draw} codes", contenders)


@DRAWN
def test_backward(race: Callable, size: cases.Size, dtype: torch.dtype, draw: str) -> None:
    """Gradients of values, W_dec and b_dec from one cotangent; the forward is outside the timing."""
    codes = cases.codes(size, dtype, draw, empty=0)
    _, _, W, b = cases.dictionary(size, dtype)
    acts = dense(codes)
    leaves = [t.requires_grad_() for t in (codes.values, W, b)]
    acts.requires_grad_()
    cotangent = cases.normal(size.n, size.d, dtype=dtype, seed=9)
    outputs = {
        OURS: sk.decode(codes, W, b),
        "torch dense matmul": acts @ W + b,
        "torch embedding_bag": bag(codes, W, b),
    }

    def backward(name: str) -> Callable[[], tuple[Tensor, ...]]:
        wanted = [acts, W, b] if "dense" in name else leaves
        return lambda: torch.autograd.grad(outputs[name], wanted, cotangent, retain_graph=True)

    contenders = {name: backward(name) for name in outputs}
    mine, theirs = contenders[OURS](), contenders["torch dense matmul"]()
    check(mine[0], theirs[0].gather(1, codes.indices.long()))
    check(mine[1], theirs[1])
    check(mine[2], theirs[2])
    race(f"decode backward, {draw} codes", contenders)
