"""`decode` and `prefix_decode`: values, bias, gradients through the public face."""

from __future__ import annotations

import pytest
import torch
from support import dense
from support.compare import assert_close

import sae_kernels as sk
from bench import cases

SIZE = cases.ORDINARY
RAGGED = pytest.mark.parametrize("ragged", [False, True], ids=["fixed", "ragged"])


@RAGGED
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_values_and_gradients(backend: str, dtype: torch.dtype, ragged: bool, bias: bool) -> None:
    codes = cases.codes(SIZE, dtype, ragged=ragged)
    _, _, W, b = cases.dictionary(SIZE, dtype)
    leaves = [t.requires_grad_() for t in ((codes.values, W, b) if bias else (codes.values, W))]
    exact = [t.detach().double().requires_grad_() for t in leaves]
    y = sk.decode(codes, W, b if bias else None, backend=backend)
    truth = dense.spmm(exact[0], codes.indices, codes.offsets, exact[1])
    truth = truth + exact[2] if bias else truth
    assert_close(y, truth.detach(), factor=2)
    cotangent = cases.normal(*y.shape, dtype=dtype, seed=7)
    y.backward(cotangent)
    for leaf, theirs in zip(leaves, torch.autograd.grad(truth, exact, cotangent.double()), strict=True):
        assert leaf.grad is not None
        assert_close(leaf.grad, theirs, factor=2)


@RAGGED
def test_prefixes(backend: str, dtype: torch.dtype, ragged: bool) -> None:
    codes = cases.codes(SIZE, dtype, ragged=ragged)
    _, _, W, b = cases.dictionary(SIZE, dtype)
    y = sk.prefix_decode(codes, W, b, [10, 100, 301], backend=backend)
    truth = dense.prefix_decode(codes.values, codes.indices, codes.offsets, W, [10, 100, 301]) + b.double()
    assert_close(y, truth, factor=2)


def test_leading_shapes(backend: str) -> None:
    codes = sk.SparseCodes(torch.ones(2, 3, 4), torch.zeros(2, 3, 4, dtype=torch.int32), 9)
    assert sk.decode(codes, torch.ones(9, 5), backend=backend).shape == (2, 3, 5)
    assert sk.prefix_decode(codes, torch.ones(9, 5), None, [2, 9], backend=backend).shape == (2, 2, 3, 5)
    ragged = sk.SparseCodes(torch.ones(3), torch.zeros(3, dtype=torch.int32), 9, torch.tensor([0, 1, 1, 3]), (1, 3))
    assert sk.decode(ragged, torch.ones(9, 5), backend=backend)[0, :, 0].tolist() == [1, 0, 2]
    single = sk.SparseCodes(torch.ones(4), torch.zeros(4, dtype=torch.int32), 9)
    assert sk.decode(single, torch.ones(9, 5), backend=backend).shape == (5,)


def test_duplicate_latents_add_up(backend: str) -> None:
    codes = sk.SparseCodes(torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[1, 1, 0]], dtype=torch.int32), 2)
    assert sk.decode(codes, torch.eye(2), backend=backend).tolist() == [[4, 3]]


def test_k_of_zero_and_no_rows(backend: str) -> None:
    none = sk.SparseCodes(torch.ones(3, 0), torch.zeros(3, 0, dtype=torch.int32), 9)
    b = torch.arange(5.0)
    assert torch.equal(sk.decode(none, torch.ones(9, 5), b, backend=backend), b.expand(3, 5))
    empty = sk.SparseCodes(torch.ones(0, 2), torch.zeros(0, 2, dtype=torch.int32), 9)
    W = torch.ones(9, 5, requires_grad=True)
    y = sk.decode(empty, W, b, backend=backend)
    assert y.shape == (0, 5)
    y.sum().backward()
    assert W.grad is not None
    assert (W.grad == 0).all()


@pytest.mark.usefixtures("one_thread")
def test_double_backward_of_the_whole_path() -> None:
    """encode then decode, differentiated twice in float64: the ops are closed under differentiation."""
    x = cases.normal(3, 4, dtype=torch.float64).requires_grad_()
    W = cases.normal(8, 4, dtype=torch.float64, seed=1).requires_grad_()

    def loop(x: torch.Tensor, W: torch.Tensor) -> torch.Tensor:
        return sk.decode(sk.encode(x, W, None, sk.TopK(3)), W)

    assert torch.autograd.gradcheck(loop, (x, W))
    assert torch.autograd.gradgradcheck(loop, (x, W))
