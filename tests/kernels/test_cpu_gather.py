"""The C++ products on widths and counts that reach every way through them: sums in registers, rows side by side,
segments and pieces of long rows, matrices larger than the caches. However they are grouped, a sum takes slots one by
one."""

from __future__ import annotations

import pytest
import torch
from support import dense
from support.compare import assert_close, assert_same
from torch import Tensor

from bench import cases

ops = torch.ops.sae_kernels
WIDTHS = (1, 7, 16, 30, 33, 47, 95, 129, 191, 193, 385, 419)
SLOTS = (9, 41, 600)  # more than the 8 side by side, the 256 of a segment, the 512 of a piece


def draw(d: int, count: int, dtype: torch.dtype, M: int = 23) -> tuple[Tensor, ...]:
    size = cases.Size(3, d, M, count)
    codes = cases.codes(size, dtype, "hot")
    X, W = cases.normal(3, d, dtype=dtype, seed=1), cases.normal(M, d, dtype=dtype, seed=2)
    return codes.values, codes.indices, X, W


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("d", WIDTHS)
def test_every_way_through_a_row(cpu: str, dtype: torch.dtype, d: int) -> None:
    for count in SLOTS:
        values, indices, X, W = draw(d, count, dtype)
        assert_close(ops.spmm(values, indices, None, W, backend=cpu), dense.spmm(values, indices, None, W))
        found = ops.prefix_decode(values, indices, None, W, [2, 11, 12, 23], backend=cpu)
        assert_close(found, dense.prefix_decode(values, indices, None, W, [2, 11, 12, 23]))
        dW = ops.spmm_t(values, indices, None, X, 23, backend=cpu)
        assert_close(dW, dense.spmm_t(values, indices, None, X, 23))
        dots = ops.sddmm(X, W, indices, None, values, backend=cpu)
        assert_close(dots, dense.sddmm(X, W, indices, None, values))


@pytest.mark.parametrize("d", WIDTHS)
def test_both_gradients_at_once_have_the_bits_of_each_alone(cpu: str, dtype: torch.dtype, d: int) -> None:
    for count in (1, 2, 3, *SLOTS):
        values, indices, X, W = draw(d, count, dtype, M=5 if count < 4 else 23)
        d_values, dW = ops.spmm_backward(X, values, indices, None, W, backend=cpu)
        assert_same(d_values, ops.sddmm(X, W, indices, None, values, backend=cpu))
        assert_same(dW, ops.spmm_t(values, indices, None, X, W.shape[0], backend=cpu))


@pytest.mark.parametrize("d", WIDTHS)
def test_empty_slots_between_others_change_no_bit(cpu: str, dtype: torch.dtype, d: int) -> None:
    """They shift how the others are grouped."""
    values, indices, _, W = draw(d, 300, dtype)
    values[values == 0] = 1
    spread, at = values.new_zeros(3, 701), indices.new_full((3, 701), 22)
    where = torch.arange(701)[torch.arange(701) % 7 < 3][:300]
    spread[:, where], at[:, where] = values, indices
    expected = ops.spmm(values, indices, None, W, backend=cpu)
    assert_same(ops.spmm(spread, at, None, W, backend=cpu), expected)


@pytest.mark.parametrize("d", [67, 193])
def test_a_matrix_larger_than_the_caches_changes_no_bit(cpu: str, dtype: torch.dtype, d: int) -> None:
    """One row that counts as 17 MiB of them: what is prefetched, and how rows are read, depends on that size."""
    row = cases.normal(1, d, dtype=dtype)
    many = (17 << 20) // (d * dtype.itemsize)
    values, indices = cases.normal(9, 45, dtype=dtype, seed=1), cases.integers(9, 45, low=0, high=7).int()
    large = ops.spmm(values, indices, None, row.expand(many, d), backend=cpu)
    assert_same(large, ops.spmm(values, indices, None, row.expand(8, d), backend=cpu))
    dots = ops.sddmm(row.expand(9, d), row.expand(many, d), indices, None, None, backend=cpu)
    assert_same(dots, ops.sddmm(row.expand(9, d), row.expand(8, d), indices, None, None, backend=cpu))
    values, indices = values[:1, :5], indices[:1, :5]
    few = ops.spmm_t(values, indices, None, row, 8, backend=cpu)
    padded = torch.zeros(many, 5, dtype=dtype), torch.zeros(many, 5, dtype=torch.int32)
    padded[0][-1], padded[1][-1] = values[0], indices[0]
    assert_same(ops.spmm_t(*padded, None, row.expand(many, d), 8, backend=cpu), few)
    d_values, dW = ops.spmm_backward(row.expand(many, d), *padded, None, row.expand(8, d), backend=cpu)
    assert_same(dW, few)
    assert_same(d_values[-1:], ops.sddmm(row, row.expand(8, d), indices, None, values, backend=cpu))
    assert (d_values[:-1] == 0).all()
