"""Indices and offsets are checked before memory is read: the tables here end where a page might."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sae_kernels.errors import DtypeError, IndexRangeError

ops = torch.ops.sae_kernels
M, D = 6, 4


@pytest.fixture(autouse=True)
def _checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU indices are read back only on request."""
    monkeypatch.setenv("SAE_KERNELS_CHECK_INDICES", "1")


def topn(values: Tensor, indices: Tensor, offsets: Tensor | None, backend: str) -> None:
    best = torch.full((M, 2), -float("inf")), torch.full((M, 2), -1, dtype=torch.int64)
    ops.latent_topn(*best, values, indices, offsets, 0, backend=backend)
    assert best[0].isneginf().all()


def rows(indices: Tensor, offsets: Tensor | None) -> int:
    return indices.shape[0] if offsets is None else offsets.numel() - 1


CONSUMERS: dict[str, Callable[[Tensor, Tensor, Tensor | None, str], object]] = {
    "spmm": lambda v, i, o, b: ops.spmm(v, i, o, torch.ones(M, D), backend=b),
    "spmm_t": lambda v, i, o, b: ops.spmm_t(v, i, o, torch.ones(rows(i, o), D), M, backend=b),
    "spmm_backward": lambda v, i, o, b: ops.spmm_backward(
        torch.ones(rows(i, o), D), v, i, o, torch.ones(M, D), backend=b
    ),
    "sddmm": lambda v, i, o, b: ops.sddmm(torch.ones(rows(i, o), D), torch.ones(M, D), i, o, v, backend=b),
    "transpose": lambda v, i, o, b: ops.transpose(i, o, M, backend=b),
    "prefix_decode": lambda v, i, o, b: ops.prefix_decode(v, i, o, torch.ones(M, D), [2, M], backend=b),
    "latent_topn": topn,
}
CONSUMER = pytest.mark.parametrize("consumer", CONSUMERS.values(), ids=CONSUMERS.keys())


@CONSUMER
@pytest.mark.parametrize("bad", [-1, M, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("ragged", [False, True], ids=["fixed", "ragged"])
def test_an_index_outside_the_dictionary(backend: str, consumer: Callable, bad: int, ragged: bool) -> None:
    indices = torch.tensor([[0, 1], [2, bad], [3, 5]], dtype=torch.int32)
    values, offsets = torch.ones(3, 2), None
    if ragged:
        indices, values, offsets = indices.flatten(), values.flatten(), torch.tensor([0, 1, 5, 6])
    where = r"\[3\]" if ragged else r"\[1, 1\]"
    with pytest.raises(IndexRangeError, match=rf"indices{where} = {bad}, expected 0 <= index < {M}"):
        consumer(values, indices, offsets, backend)


@CONSUMER
def test_even_in_an_empty_slot(backend: str, consumer: Callable) -> None:
    with pytest.raises(IndexRangeError):
        consumer(torch.zeros(1, 1), torch.tensor([[M]], dtype=torch.int32), None, backend)


@CONSUMER
@pytest.mark.parametrize(
    "offsets",
    [
        pytest.param([1, 2, 4], id="not from 0"),
        pytest.param([0, 3, 2, 4], id="falling"),
        pytest.param([0, 2, 5], id="beyond nnz"),
        pytest.param([0, 2, 3], id="short of nnz"),
        pytest.param([0, 2**62, 4], id="huge"),
        pytest.param([0, -1, 4], id="negative"),
        pytest.param([0], id="no rows for four slots"),
    ],
)
def test_offsets_that_are_no_csr(backend: str, consumer: Callable, offsets: list[int]) -> None:
    indices = torch.tensor([0, 1, 2, 3], dtype=torch.int32)
    with pytest.raises(IndexRangeError, match="offsets"):
        consumer(torch.ones(4), indices, torch.tensor(offsets), backend)


@CONSUMER
def test_int64_indices_are_refused_by_the_fast_backends(fast: str, consumer: Callable) -> None:
    with pytest.raises(DtypeError, match=r"int64.*expected int32"):
        consumer(torch.ones(2, 2), torch.zeros(2, 2, dtype=torch.int64), None, fast)


@pytest.mark.parametrize("bad", [-1, 5, 2**31 - 1])
def test_adam_rows_outside_the_parameter(backend: str, bad: int) -> None:
    state = [torch.zeros(5, 3) for _ in range(3)]
    listed = torch.tensor([0, bad], dtype=torch.int32)
    last = torch.zeros(5, dtype=torch.int64)
    lrs = torch.ones(1, dtype=torch.float64)
    with pytest.raises(IndexRangeError, match=rf"\[1\] = {bad}"):
        ops.adam_rows(*state, torch.ones(2, 3), listed, last, lrs, 1, 0.9, 0.999, 1e-8, False, False, backend=backend)
    assert (state[0] == 0).all()
    assert (last == 0).all()
