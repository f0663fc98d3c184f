"""Strides are honoured: every layout gives bit for bit what the contiguous one gives."""

from __future__ import annotations

import pytest
import torch
from support.compare import assert_same

from bench import cases

ops = torch.ops.sae_kernels
SIZE = cases.Size(13, 18, 50, 4)
LAYOUTS = sorted(cases.layouts(torch.zeros(1, 1)))
LAYOUT = pytest.mark.parametrize("layout", LAYOUTS)


def codes(dtype: torch.dtype, layout: str) -> tuple[torch.Tensor, torch.Tensor]:
    plain = cases.codes(SIZE, dtype)
    return cases.layouts(plain.values)[layout], cases.layouts(plain.indices)[layout]


@LAYOUT
def test_products(backend: str, dtype: torch.dtype, layout: str) -> None:
    X, W = cases.normal(13, 18, dtype=dtype, seed=1), cases.normal(50, 18, dtype=dtype, seed=2)
    laid_X, laid_W = cases.layouts(X)[layout], cases.layouts(W)[layout]
    values, indices = codes(dtype, "contiguous")
    laid_values, laid_indices = codes(dtype, layout)
    on = {"backend": backend}
    assert_same(ops.spmm(laid_values, laid_indices, None, laid_W, **on), ops.spmm(values, indices, None, W, **on))
    assert_same(
        ops.spmm_t(laid_values, laid_indices, None, laid_X, 50, **on),
        ops.spmm_t(values, indices, None, X, 50, **on),
    )
    found = ops.spmm_backward(laid_X, laid_values, laid_indices, None, laid_W, **on)
    for mine, theirs in zip(found, ops.spmm_backward(X, values, indices, None, W, **on), strict=True):
        assert_same(mine, theirs)
    found = ops.sddmm(laid_X, laid_W, laid_indices, None, laid_values, **on)
    assert_same(found, ops.sddmm(X, W, indices, None, values, **on))
    found = ops.prefix_decode(laid_values, laid_indices, None, laid_W, [9, 50], **on)
    assert_same(found, ops.prefix_decode(values, indices, None, W, [9, 50], **on))
    for mine, theirs in zip(
        ops.transpose(laid_indices, None, 50, **on), ops.transpose(indices, None, 50, **on), strict=True
    ):
        assert_same(mine, theirs)


@LAYOUT
def test_selections(backend: str, dtype: torch.dtype, layout: str) -> None:
    """Integers, so that the order of a GEMM's sums does not matter."""
    x, W = cases.integers(13, 18, dtype=dtype, seed=1), cases.integers(50, 18, dtype=dtype, seed=2)
    b = cases.integers(50, dtype=dtype, seed=3)
    laid = cases.layouts(x)[layout], cases.layouts(W)[layout], b.repeat_interleave(2)[::2]
    theta = torch.tensor(3.0)
    for op, extra in (
        (ops.linear_topk, ([4, 9], [True, False], [cases.everyone(), torch.arange(100)[::2] % 3 == 0])),
        (ops.linear_threshold, (theta,)),
        (ops.linear_threshold, (torch.arange(100.0)[::2] % 5,)),
        (ops.linear_batch_topk, (60, True)),
    ):
        for mine, theirs in zip(op(*laid, *extra, backend=backend), op(x, W, b, *extra, backend=backend), strict=True):
            assert_same(mine, theirs, signed_zeros=False)
    scores = cases.scores("ties", 13, 50, dtype)
    for mine, theirs in zip(
        ops.topk(cases.layouts(scores)[layout], 7, backend=backend),
        ops.topk(scores, 7, backend=backend),
        strict=True,
    ):
        assert_same(mine, theirs)


def test_stride_zero(backend: str, dtype: torch.dtype) -> None:
    """Expanded rows, columns and codes."""
    row, column = cases.integers(1, 18, dtype=dtype), cases.integers(50, 1, dtype=dtype, seed=4)
    on = {"backend": backend}
    for W in (row.expand(50, 18), column.expand(50, 18), row[:, :1].expand(50, 18)):
        values, indices = codes(dtype, "contiguous")
        assert_same(ops.spmm(values, indices, None, W, **on), ops.spmm(values, indices, None, W.contiguous(), **on))
        one_value = values[:1].expand(13, 4)
        same_index = indices[:1].expand(13, 4)
        found = ops.spmm(one_value, same_index, None, W, **on)
        assert_same(found, ops.spmm(one_value.contiguous(), same_index.contiguous(), None, W.contiguous(), **on))
        x = row.expand(13, 18)
        found = ops.linear_topk(x, W, None, [5], [True], [cases.everyone()], **on)
        for mine, theirs in zip(
            found,
            ops.linear_topk(x.contiguous(), W.contiguous(), None, [5], [True], [cases.everyone()], **on),
            strict=True,
        ):
            assert_same(mine, theirs, signed_zeros=False)
    scores = column.mT.expand(6, 50)
    for mine, theirs in zip(ops.topk(scores, 5, **on), ops.topk(scores.contiguous(), 5, **on), strict=True):
        assert_same(mine, theirs)


def test_ragged_codes_may_be_strided(backend: str) -> None:
    values, indices, offsets = cases.codes(SIZE, ragged=True).flat()
    W = cases.normal(50, 18)
    assert offsets is not None
    spread = [t.repeat_interleave(3)[::3] for t in (values, indices, offsets)]
    assert_same(ops.spmm(*spread, W, backend=backend), ops.spmm(values, indices, offsets, W, backend=backend))


def test_a_lazily_negated_view(backend: str) -> None:
    """`.imag` of a conjugate is a view whose sign is a bit of the tensor, not in memory."""
    W = torch.complex(torch.zeros(50, 18), cases.normal(50, 18)).conj().imag
    assert W.is_neg()
    values, indices = codes(torch.float32, "contiguous")
    assert_same(
        ops.spmm(values, indices, None, W, backend=backend),
        ops.spmm(values, indices, None, W.resolve_neg().contiguous(), backend=backend),
    )
