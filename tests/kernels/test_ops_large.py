"""More than 2**31 elements: offsets are 64 bits wide. Memory is virtual: only a few pages are ever touched."""

from __future__ import annotations

import pytest
import torch
from support import dense
from support.compare import assert_close
from torch import Tensor

from bench import cases

ops = torch.ops.sae_kernels
ROWS, COLUMNS = 2**16 + 1, 2**15 + 1  # their product passes 2**31


@pytest.fixture
def _poisoned() -> None:
    """Filling gigabytes would make them real."""


def hankel(dtype: torch.dtype) -> Tensor:
    """(ROWS, COLUMNS), each row the one above moved by one: distinct rows, in 100 000 elements."""
    buffer = cases.normal(ROWS + COLUMNS, dtype=dtype)
    return buffer.as_strided((ROWS, COLUMNS), (1, 1))


def sparse_rows(dtype: torch.dtype, used: list[int]) -> Tensor:
    """(ROWS, 3) whose rows lie COLUMNS apart; only the `used` ones are filled."""
    matrix = torch.empty(ROWS * COLUMNS, dtype=dtype).as_strided((ROWS, 3), (COLUMNS, 1))
    for row in used:
        matrix[row] = cases.normal(3, dtype=dtype, seed=row)
    return matrix


def test_topk_over_2_to_the_31_scores(cpu: str) -> None:
    scores = hankel(torch.float32)
    values, indices = ops.topk(scores, 2, backend=cpu)
    rows = [0, 1, 40_000, ROWS - 1]
    assert torch.equal(values[rows].sort(1, descending=True).values, scores[rows].topk(2).values)
    assert torch.equal(values[rows], scores[rows].gather(1, indices[rows].long()))


def test_rows_that_lie_beyond_2_to_the_31(backend: str, dtype: torch.dtype) -> None:
    used = [0, 1, 65_530, ROWS - 1]
    W = sparse_rows(dtype, used)
    indices = torch.tensor([used, used[::-1]], dtype=torch.int32)
    values = cases.normal(2, 4, dtype=dtype)
    packed, where = W[used], torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]], dtype=torch.int32)
    assert_close(ops.spmm(values, indices, None, W, backend=backend), dense.spmm(values, where, None, packed))
    X = cases.normal(2, 3, dtype=dtype, seed=1)
    found = ops.sddmm(X, W, indices, None, values, backend=backend)
    assert_close(found, dense.sddmm(X, packed, where, None, values))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["topk", "threshold", "batch_topk"])
def test_more_than_2_to_the_31_pre_acts(cpu: str, kind: str) -> None:
    """z = x wᵀ with one column: the largest of a row is at the largest w, or the smallest where x is negative."""
    x = cases.normal(ROWS, 1, seed=1)
    W = torch.linspace(-1, 1, COLUMNS).unsqueeze(1)
    x[-1], x[-2] = 9.0, -8.5  # the top of the batch lies at its very end
    if kind == "topk":
        none = torch.empty(0, dtype=torch.bool)
        values, indices = ops.linear_topk(x, W, None, [1], [True], [none], backend=cpu)
        assert torch.equal(indices[:, 0] == COLUMNS - 1, x[:, 0] > 0)
        assert torch.equal(values, x.abs())
        return
    if kind == "threshold":
        values, indices, offsets = ops.linear_threshold(x, W, None, torch.tensor(8.49999), backend=cpu)
        kept = (9.0 * W[:, 0] > 8.49999).nonzero().flatten()
        assert indices.tolist() == [0, *kept.tolist()]
    else:
        values, indices, offsets = ops.linear_batch_topk(x, W, None, 5, True, backend=cpu)
        assert indices.tolist() == list(range(COLUMNS - 5, COLUMNS))
    assert offsets[-3:].tolist() == [0, int(kind == "threshold"), values.numel()]
    assert (values > 8.4999).all()
