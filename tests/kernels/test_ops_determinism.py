"""The same bits from run to run and for any number of threads, on sizes that split unevenly."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from support.compare import assert_same
from torch import Tensor

from bench import cases

ops = torch.ops.sae_kernels
SIZE = cases.Size(257, 67, 1500, 21)


def _adam(dtype: torch.dtype, backend: str) -> list[Tensor]:
    state = [cases.normal(1500, 67, dtype=dtype, seed=1), torch.zeros(1500, 67), torch.zeros(1500, 67)]
    rows = cases.permutation(1500)[:700]
    last = torch.arange(1500) % 4
    lrs = torch.full((5,), 1e-3, dtype=torch.float64)
    grad = cases.normal(700, 67, dtype=dtype, seed=2)
    ops.adam_rows(*state, grad, rows, last, lrs, 5, 0.9, 0.999, 1e-8, True, True, backend=backend)
    return [*state, last]


def _topn(dtype: torch.dtype, backend: str) -> list[Tensor]:
    best = [torch.full((1500, 3), -float("inf")), torch.full((1500, 3), -1, dtype=torch.int64)]
    values, indices, offsets = cases.codes(SIZE, dtype, "zipf").flat()
    ops.latent_topn(*best, values, indices, offsets, 0, backend=backend)
    return best


def run(op: str, dtype: torch.dtype, ragged: bool, backend: str) -> Iterable[Tensor]:
    """One op on fixed inputs."""
    if op == "adam_rows":
        return _adam(dtype, backend)
    if op == "latent_topn":
        return _topn(dtype, backend)
    X, W = cases.normal(257, 67, dtype=dtype, seed=1), cases.normal(1500, 67, dtype=dtype, seed=2)
    b = cases.normal(1500, dtype=dtype, seed=3)
    if "topk" in op or "threshold" in op:  # small integers: exact in any order, so that torch's GEMM cannot differ
        X, W, b = ((2 * t).round() for t in (X, W, b))
    values, indices, offsets = cases.codes(SIZE, dtype, "hot", ragged=ragged).flat()
    on = {"backend": backend}
    calls: dict[str, Callable[[], Iterable[Tensor]]] = {
        "spmm": lambda: [ops.spmm(values, indices, offsets, W, **on)],
        "spmm_t": lambda: [ops.spmm_t(values, indices, offsets, X, 1500, **on)],
        "spmm_backward": lambda: ops.spmm_backward(X, values, indices, offsets, W, **on),
        "sddmm": lambda: [ops.sddmm(X, W, indices, offsets, values, **on)],
        "transpose": lambda: ops.transpose(indices, offsets, 1500, **on),
        "prefix_decode": lambda: [ops.prefix_decode(values, indices, offsets, W, [7, 800, 1500], **on)],
        "topk": lambda: ops.topk(X @ W.mT, 30, **on),
        "linear_topk": lambda: ops.linear_topk(
            X, W, b, [30, 90], [True, False], [cases.everyone(), torch.arange(1500) % 7 == 0], **on
        ),
        "linear_threshold": lambda: ops.linear_threshold(X, W, b, torch.tensor(3.0), **on),
        "linear_batch_topk": lambda: ops.linear_batch_topk(X, W, b, 257 * 21, True, **on),
    }
    return calls[op]()


CASES = [
    *(
        (op, ragged)
        for op in ("spmm", "spmm_t", "spmm_backward", "sddmm", "transpose", "prefix_decode")
        for ragged in (False, True)
    ),
    *(
        (op, False)
        for op in ("topk", "linear_topk", "linear_threshold", "linear_batch_topk", "adam_rows", "latent_topn")
    ),
]


@pytest.mark.parametrize(("op", "ragged"), CASES, ids=lambda value: {True: "ragged", False: "fixed"}.get(value, value))
def test_any_number_of_threads_gives_the_same_bits(
    cpu: str, dtype: torch.dtype, op: str, ragged: bool, threads: Callable
) -> None:
    """Of the reference this is not asked: torch's own GEMM may split its sums by thread."""
    outcomes = []
    for count in (1, 2, 3, 2):
        with threads(count):
            outcomes.append([t.clone() for t in run(op, dtype, ragged, cpu)])
    for other in outcomes[1:]:
        for mine, theirs in zip(outcomes[0], other, strict=True):
            assert_same(mine, theirs)
