"""`spmm`, `spmm_t`, `sddmm`, `spmm_backward` against dense float64, on every backend, dtype and pattern of codes."""

from __future__ import annotations

import pytest
import torch
from support import dense
from support.compare import assert_close, assert_same
from torch.nn import functional as F

from bench import cases

ops = torch.ops.sae_kernels
ALL_SIZES = (*cases.SMALL[:-1], pytest.param(cases.SMALL[-1], marks=pytest.mark.big), *cases.EMPTY)


def tensors(size: cases.Size, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return cases.normal(size.n, size.d, dtype=dtype, seed=1), cases.normal(size.d_sae, size.d, dtype=dtype, seed=2)


@pytest.mark.parametrize("ragged", [False, True], ids=["fixed", "ragged"])
@pytest.mark.parametrize("size", ALL_SIZES, ids=str)
def test_products_of_every_size(backend: str, dtype: torch.dtype, size: cases.Size, ragged: bool) -> None:
    X, W = tensors(size, dtype)
    codes = cases.codes(size, dtype, ragged=ragged)
    values, indices, offsets = codes.flat()
    assert_close(ops.spmm(values, indices, offsets, W, backend=backend), dense.spmm(values, indices, offsets, W))
    found = ops.spmm_t(values, indices, offsets, X, size.d_sae, backend=backend)
    assert_close(found, dense.spmm_t(values, indices, offsets, X, size.d_sae))
    d_values, dW = ops.spmm_backward(X, values, indices, offsets, W, backend=backend)
    assert_close(d_values, dense.sddmm(X, W, indices, offsets, values))
    assert_close(dW, dense.spmm_t(values, indices, offsets, X, size.d_sae))
    for gate in (values, None):
        found = ops.sddmm(X, W, indices, offsets, gate, backend=backend)
        assert_close(found, dense.sddmm(X, W, indices, offsets, gate))


@pytest.mark.parametrize("ragged", [False, True], ids=["fixed", "ragged"])
@pytest.mark.parametrize("draw", cases.DRAWS)
def test_products_of_every_pattern(backend: str, dtype: torch.dtype, draw: str, ragged: bool) -> None:
    size = cases.Size(37, 45, 71, 7)
    X, W = tensors(size, dtype)
    values, indices, offsets = cases.codes(size, dtype, draw, ragged=ragged).flat()
    found = ops.spmm_t(values, indices, offsets, X, size.d_sae, backend=backend)
    truth = dense.spmm_t(values, indices, offsets, X, size.d_sae)
    assert_close(found, truth)
    d_values, dW = ops.spmm_backward(X, values, indices, offsets, W, backend=backend)
    assert_close(d_values, dense.sddmm(X, W, indices, offsets, values))
    assert_close(dW, truth)
    untouched = torch.ones(size.d_sae, dtype=torch.bool)
    untouched[indices.flatten()[values.flatten() != 0].long()] = False
    assert (found[untouched] == 0).all()
    assert_close(ops.spmm(values, indices, offsets, W, backend=backend), dense.spmm(values, indices, offsets, W))
    found = ops.sddmm(X, W, indices, offsets, values, backend=backend)
    assert_close(found, dense.sddmm(X, W, indices, offsets, values))


def test_products_are_no_worse_than_pytorchs_own(backend: str, dtype: torch.dtype) -> None:
    size = cases.Size(48, 96, 160, 16)
    X, W = tensors(size, dtype)
    values, indices, _ = cases.codes(size, dtype, empty=0).flat()
    bag = F.embedding_bag(indices, W, per_sample_weights=values, mode="sum")
    assert_close(ops.spmm(values, indices, None, W, backend=backend), dense.spmm(values, indices, None, W), bag)
    acts = dense.table(values, indices, None, size.d_sae)
    truth, own = acts.T @ X.double(), acts.to(dtype).T @ X
    assert_close(ops.spmm_t(values, indices, None, X, size.d_sae, backend=backend), truth, own)
    own = (X @ W.T).gather(1, indices.long())
    assert_close(ops.sddmm(X, W, indices, None, None, backend=backend), dense.sddmm(X, W, indices, None, None), own)


def test_products_in_float64_run_on_the_reference() -> None:
    size = cases.ORDINARY
    X, W = tensors(size, torch.float64)
    values, indices, offsets = cases.codes(size, torch.float64, ragged=True).flat()
    assert_close(ops.spmm(values, indices, offsets, W), dense.spmm(values, indices, offsets, W))
    assert_close(
        ops.spmm_t(values, indices, offsets, X, size.d_sae),
        dense.spmm_t(values, indices, offsets, X, size.d_sae),
    )
    assert_close(ops.sddmm(X, W, indices, offsets, values), dense.sddmm(X, W, indices, offsets, values))


@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf")])
def test_empty_slots_swallow_what_they_point_at(backend: str, dtype: torch.dtype, special: float) -> None:
    """0 · inf and 0 · NaN are NaN, but an empty slot is not a product."""
    size = cases.Size(6, 19, 10, 4)
    X, W = tensors(size, dtype)
    values, indices, _ = cases.codes(size, dtype, empty=0).flat()
    indices[:, 0] = 3
    values[:, 0] = 0
    values[0, 0] = -0.0
    indices[:, 1:][indices[:, 1:] == 3] = 4
    W[3] = special
    clean = W.clone()
    clean[3] = 0
    found = ops.spmm(values, indices, None, W, backend=backend)
    assert_same(found, ops.spmm(values, indices, None, clean, backend=backend))
    dots = ops.sddmm(X, W, indices, None, values, backend=backend)
    assert (dots[:, 0] == 0).all()
    assert dots.isfinite().all()
    X[2] = special
    values[2] = 0
    found = ops.spmm_t(values, indices, None, X, size.d_sae, backend=backend)
    assert found.isfinite().all()


@pytest.mark.parametrize("special", [float("nan"), float("inf")])
def test_non_finite_numbers_in_use_show(backend: str, dtype: torch.dtype, special: float) -> None:
    values, indices = torch.ones(2, 2, dtype=dtype), torch.tensor([[0, 1], [1, 2]], dtype=torch.int32)
    W = torch.ones(3, 5, dtype=dtype)
    W[0, 2] = special
    y = ops.spmm(values, indices, None, W, backend=backend)
    assert not y[0, 2].isfinite()
    assert y[1].isfinite().all()
    assert y[0, [0, 1, 3, 4]].isfinite().all()
    values[1, 0] = special
    y = ops.spmm(values, indices, None, torch.ones_like(W), backend=backend)
    assert y[0].isfinite().all()
    assert not y[1].isfinite().any()
    back = ops.spmm_t(values, indices, None, torch.ones(2, 5, dtype=dtype), 3, backend=backend)
    assert not back[1].isfinite().any()
    assert back[[0, 2]].isfinite().all()
    dots = ops.sddmm(torch.ones(2, 5, dtype=dtype), W, indices, None, None, backend=backend)
    assert dots.isfinite().tolist() == [[False, True], [True, True]]


def test_sums_accumulate_in_float32(backend: str) -> None:
    """4096 ones in bfloat16 stop at 256 when the sum is kept in bfloat16."""
    values, indices = torch.ones(1, 4096, dtype=torch.bfloat16), torch.zeros(1, 4096, dtype=torch.int32)
    one = torch.ones(1, 1, dtype=torch.bfloat16)
    assert ops.spmm(values, indices, None, one, backend=backend).item() == 4096
    assert ops.spmm_t(values.mT, indices.mT, None, one.expand(4096, 1), 1, backend=backend).item() == 4096
    wide = torch.ones(1, 4096, dtype=torch.bfloat16)
    assert ops.sddmm(wide, wide, indices[:, :1], None, None, backend=backend).item() == 4096
