"""Gradients of the products: gradcheck and gradgradcheck, and each fast dtype against float64 autograd."""

from __future__ import annotations

import pytest
import torch
from support import dense
from support.compare import assert_close
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from bench import cases

ops = torch.ops.sae_kernels
SIZE = cases.Size(5, 4, 9, 3)
RAGGED = pytest.mark.parametrize("ragged", [False, True], ids=["fixed", "ragged"])


def leaves(dtype: torch.dtype, ragged: bool, size: cases.Size = SIZE, empty: float = 0.0) -> tuple[Tensor, ...]:
    """values, X, W that want gradients; indices, offsets."""
    values, indices, offsets = cases.codes(size, dtype, ragged=ragged, empty=empty).flat()
    X = cases.normal(size.n, size.d, dtype=dtype, seed=1)
    W = cases.normal(size.d_sae, size.d, dtype=dtype, seed=2)
    return *(t.requires_grad_() for t in (values, X, W)), indices, offsets


@RAGGED
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
def test_reference_gradients_are_right_twice_over(check, ragged: bool) -> None:
    values, X, W, indices, offsets = leaves(torch.float64, ragged)
    on = {"backend": "reference"}
    assert check(lambda v, w: ops.spmm(v, indices, offsets, w, **on), (values, W))
    assert check(lambda v, x: ops.spmm_t(v, indices, offsets, x, SIZE.d_sae, **on), (values, X))
    assert check(lambda x, w: ops.sddmm(x, w, indices, offsets, None, **on), (X, W))


@RAGGED
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
def test_reference_prefix_gradient(check, ragged: bool) -> None:
    values, _, W, indices, offsets = leaves(torch.float64, ragged)
    assert check(lambda v, w: ops.prefix_decode(v, indices, offsets, w, [2, 5, 9], backend="reference"), (values, W))


def gradients(run, truth, inputs: list[Tensor]) -> None:
    """Both functions' gradients of one random cotangent, compared; `truth` sees float64 copies."""
    exact = [t.detach().double().requires_grad_() for t in inputs]
    y, y_exact = run(*inputs), truth(*exact)
    cotangent = cases.normal(*y.shape, dtype=y.dtype, seed=9)
    found = torch.autograd.grad(y, inputs, cotangent)
    expected = torch.autograd.grad(y_exact, exact, cotangent.double())
    for mine, theirs, leaf in zip(found, expected, inputs, strict=True):
        assert mine.dtype == leaf.dtype
        assert_close(mine, theirs, factor=2)


@RAGGED
def test_gradients_in_every_dtype(backend: str, dtype: torch.dtype, ragged: bool) -> None:
    size = cases.Size(21, 34, 55, 6)
    values, X, W, indices, offsets = leaves(dtype, ragged, size, empty=0.3)
    on = {"backend": backend}
    gradients(
        lambda v, w: ops.spmm(v, indices, offsets, w, **on),
        lambda v, w: dense.spmm(v, indices, offsets, w),
        [values, W],
    )
    gradients(
        lambda v, x: ops.spmm_t(v, indices, offsets, x, 55, **on),
        lambda v, x: dense.spmm_t(v, indices, offsets, x, 55),
        [values, X],
    )
    gate = values.detach()
    gradients(
        lambda x, w: ops.sddmm(x, w, indices, offsets, gate, **on),
        lambda x, w: dense.sddmm(x, w, indices, offsets, gate),
        [X, W],
    )
    gradients(
        lambda v, w: ops.prefix_decode(v, indices, offsets, w, [8, 20, 55], **on),
        lambda v, w: dense.prefix_decode(v, indices, offsets, w, [8, 20, 55]),
        [values, W],
    )


@RAGGED
@pytest.mark.parametrize("wanted", ["values", "W", "both"])
@pytest.mark.parametrize("prefixes", [[55], [8, 20], [1, 2, 3, 30, 54, 55]], ids=str)
def test_prefix_gradients(backend: str, ragged: bool, prefixes: list[int], wanted: str) -> None:
    """With slots beyond the last prefix, bands that hold hardly any, and gradients wanted of one side alone."""
    values, _, W, indices, offsets = leaves(torch.float32, ragged, cases.Size(21, 34, 55, 6), empty=0.3)
    values.requires_grad_(wanted != "W")
    W.requires_grad_(wanted != "values")

    def mine(*given: Tensor) -> Tensor:
        v, w = given if wanted == "both" else (given[0], W) if wanted == "values" else (values, given[0])
        return ops.prefix_decode(v, indices, offsets, w, prefixes, backend=backend)

    def theirs(*given: Tensor) -> Tensor:
        v, w = given if wanted == "both" else (given[0], W) if wanted == "values" else (values, given[0])
        return dense.prefix_decode(v, indices, offsets, w, prefixes)

    gradients(mine, theirs, [t for t in (values, W) if t.requires_grad])


def test_no_gradient_passes_through_an_empty_slot(backend: str) -> None:
    values = torch.tensor([[1.0, 0.0, -0.0]], requires_grad=True)
    indices = torch.tensor([[0, 1, 2]], dtype=torch.int32)
    W = torch.ones(3, 4, requires_grad=True)
    ops.spmm(values, indices, None, W, backend=backend).sum().backward()
    assert values.grad is not None
    assert W.grad is not None
    assert values.grad.tolist() == [[4, 0, 0]]
    assert W.grad.sum(1).tolist() == [4, 0, 0]


@pytest.mark.parametrize("wanted", [(True, False), (False, True), (True, True), (False, False)])
def test_only_what_asks_gets_a_gradient(backend: str, wanted: tuple[bool, bool]) -> None:
    values, indices, _ = cases.codes(SIZE).flat()
    W = cases.normal(SIZE.d_sae, SIZE.d)
    values.requires_grad_(wanted[0])
    W.requires_grad_(wanted[1])
    y = ops.spmm(values, indices, None, W, backend=backend)
    assert y.requires_grad == any(wanted)
    if any(wanted):
        y.sum().backward()
    assert (values.grad is not None, W.grad is not None) == wanted


def test_the_backward_stays_on_the_backend_of_the_forward(backend: str) -> None:
    """A cotangent that is expanded (stride 0), as `sum()` makes it, is welcome there."""
    values, indices, _ = cases.codes(SIZE).flat()
    values.requires_grad_()
    W = cases.normal(SIZE.d_sae, SIZE.d, seed=2)
    ops.spmm(values, indices, None, W, backend=backend).sum().backward()
    expected = torch.where(values.detach() != 0, W.double().sum(1)[indices.long()], 0)
    assert_close(values.grad, expected)  # pyright: ignore[reportArgumentType]
