"""The products by PyTorch's GEMM: codes written out densely, in chunks, on the CPU and (in Triton) on a GPU."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

import pytest
import torch
from support import dense
from support.compare import assert_close, assert_same
from torch import Tensor

from bench import cases
from sae_kernels.errors import BackendError, IndexRangeError, SaeKernelsError
from sae_kernels.kernels import _dense
from sae_kernels.kernels._cost import model

ops = torch.ops.sae_kernels
ON = {"backend": "dense"}
INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
GPU = not INTERPRETING and torch.cuda.is_available()
SIZES = (
    pytest.param(cases.Size(1, 1, 1, 1), marks=pytest.mark.big),
    cases.Size(5, 3, 7, 2),
    pytest.param(cases.Size(3, 17, 33, 33), marks=pytest.mark.big),
    pytest.param(cases.Size(7, 67, 1, 1), marks=pytest.mark.big),
    cases.Size(3, 20, 129, 40),
    *cases.EMPTY,
)
FEW = cases.Size(2 if INTERPRETING else 7, 9, 23, 37)  # more slots than latents: every row holds some twice
RAGGED = pytest.mark.parametrize("ragged", [False, True], ids=["fixed", "ragged"])


@pytest.fixture(params=["triton"] if INTERPRETING else ["cpu", "cuda"] if GPU else ["cpu"], autouse=True)
def place(request: pytest.FixtureRequest, one_thread: None) -> Iterator[str]:
    """Where tensors lie, and with that which of the two ways of making a table runs."""
    with torch.device("cuda") if request.param == "cuda" else contextlib.nullcontext():
        yield request.param


@pytest.fixture(params=[None, 128], ids=["whole", "chunks"])
def scratch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table in one piece, and in chunks of a row or a few."""
    if request.param is not None:
        monkeypatch.setattr(model, "SCRATCH_BYTES", request.param)
        whole = model.chunk
        monkeypatch.setattr(_dense, "chunk", lambda total, each, matrix: whole(total, each, 0))


def check(size: cases.Size, dtype: torch.dtype, codes: tuple[Tensor, Tensor, Tensor | None]) -> None:
    """All products of these codes against float64."""
    X, W = cases.normal(size.n, size.d, dtype=dtype, seed=1), cases.normal(size.d_sae, size.d, dtype=dtype, seed=2)
    host = [None if t is None else t.cpu() for t in codes]
    truth = dense.spmm(*host, W.cpu())
    assert_close(ops.spmm(*codes, W, **ON).cpu(), truth)
    found = ops.spmm_t(*codes, X, size.d_sae, **ON).cpu()
    assert_close(found, dense.spmm_t(*host, X.cpu(), size.d_sae))
    values, indices, offsets = codes
    for gate in (values, None):
        found = ops.sddmm(X, W, indices, offsets, gate, **ON).cpu()
        truth = dense.sddmm(X.cpu(), W.cpu(), host[1], host[2], None if gate is None else host[0])
        assert_close(found, truth)
    if INTERPRETING and size.k > 2:
        return  # it is the two products that were just looked at
    d_values, dW = ops.spmm_backward(X, *codes, W, **ON)
    assert_same(d_values, ops.sddmm(X, W, indices, offsets, values, **ON))
    assert_same(dW, ops.spmm_t(*codes, X, size.d_sae, **ON))


@RAGGED
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_size(dtype: torch.dtype, size: cases.Size, ragged: bool) -> None:
    check(size, dtype, cases.codes(size, dtype, ragged=ragged).flat())


@RAGGED
@pytest.mark.parametrize("draw", ["uniform", pytest.param("hot", marks=pytest.mark.big)])
def test_latents_that_stand_in_a_row_twice(dtype: torch.dtype, draw: str, ragged: bool, scratch: None) -> None:
    check(FEW, dtype, cases.codes(FEW, dtype, draw, ragged=ragged).flat())


def test_duplicates_are_added_in_float32(place: str) -> None:
    """4096 ones in bfloat16 stop at 256 when the sum is kept in bfloat16."""
    slots = 4096 if place != "triton" else 288
    values, indices = torch.ones(1, slots, dtype=torch.bfloat16), torch.zeros(1, slots, dtype=torch.int32)
    one = torch.ones(1, 1, dtype=torch.bfloat16)
    assert ops.spmm(values, indices, None, one, **ON).item() == slots
    if place != "triton":  # a program a row is too slow in the interpreter
        found = ops.spmm_t(values.mT, indices.mT, None, one.expand(slots, 1), 1, **ON)
        assert found.item() == slots


@RAGGED
def test_the_same_bits_again_and_on_one_thread_less(dtype: torch.dtype, ragged: bool, threads: Callable) -> None:
    """Of the table, that is; the GEMM is PyTorch's. Its sums of a one-hot code are exact in any order."""
    size = FEW if INTERPRETING else cases.Size(65, 9, 300, 250)
    codes = cases.codes(size, dtype, "zipf", ragged=ragged).flat()
    eye = torch.eye(size.d_sae, dtype=dtype)
    outcomes = []
    for count in (2, 1, 2):
        with threads(count):
            outcomes.append(ops.spmm(*codes, eye, **ON))
    assert_same(outcomes[0], outcomes[1])
    assert_same(outcomes[0], outcomes[2])


def test_any_layout() -> None:
    size = cases.Size(6, 8, 21, 4)
    codes, W, X = cases.codes(size).flat(), cases.normal(21, 8, seed=2), cases.normal(6, 8, seed=1)
    values, indices = codes[:2]
    for name, laid in cases.layouts(W).items():
        assert_close(ops.spmm(*codes, laid, **ON).cpu(), dense.spmm(values.cpu(), indices.cpu(), None, W.cpu()))
        across = cases.layouts(X)[name]
        found = ops.sddmm(across, laid, cases.layouts(indices)[name], None, cases.layouts(values)[name], **ON)
        assert_same(found, ops.sddmm(X, W, indices, None, values, **ON))


def test_empty_slots_are_no_codes() -> None:
    """Not even where they hold the latent of another slot; and a closed gate gives 0 whatever it hides."""
    values, indices = torch.tensor([[0.0, 2.0, -0.0]]), torch.tensor([[1, 1, 0]], dtype=torch.int32)
    W = torch.tensor([[1.0], [3.0], [5.0]])
    assert ops.spmm(values, indices, None, W, **ON).tolist() == [[6.0]]
    W[0] = float("nan")
    assert ops.sddmm(torch.ones(1, 1), W, indices, None, values, **ON).tolist() == [[0.0, 3.0, 0.0]]


@pytest.mark.parametrize("special", [float("nan"), float("inf")])
def test_codes_that_are_not_finite_show(special: float) -> None:
    values, indices = torch.ones(2, 2), torch.tensor([[0, 1], [1, 2]], dtype=torch.int32)
    values[1, 0] = special
    y = ops.spmm(values, indices, None, torch.ones(3, 5), **ON)
    assert y[0].isfinite().all()
    assert not y[1].isfinite().any()
    back = ops.spmm_t(values, indices, None, torch.ones(2, 5), 3, **ON)
    assert not back[1].isfinite().any()


def test_gradients_go_on_by_the_same_backend() -> None:
    size = cases.Size(4, 5, 11, 3)
    values, indices, _ = cases.codes(size, empty=0).flat()
    W = cases.normal(11, 5).requires_grad_()
    values.requires_grad_()
    ops.spmm(values, indices, None, W, **ON).square().sum().backward()
    grads = values.grad, W.grad
    values.grad = W.grad = None
    ops.spmm(values, indices, None, W, backend="reference").square().sum().backward()
    for mine, theirs in zip(grads, (values.grad, W.grad), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@RAGGED
def test_indices_and_offsets_are_checked(place: str, ragged: bool) -> None:
    if place == "cuda":
        pytest.skip("a GPU is not made to wait for a check")
    values, indices = torch.ones(3, 2), torch.tensor([[0, 1], [2, 6], [3, 5]], dtype=torch.int32)
    offsets = torch.tensor([0, 1, 5, 6]) if ragged else None
    if ragged:
        values, indices = values.flatten(), indices.flatten()
    x, W = torch.ones(3, 4), torch.ones(6, 4)
    for call in (
        lambda: ops.spmm(values, indices, offsets, W, **ON),
        lambda: ops.spmm_t(values, indices, offsets, x, 6, **ON),
        lambda: ops.sddmm(x, W, indices, offsets, values, **ON),
    ):
        with pytest.raises(IndexRangeError, match=r"= 6, expected 0 <= index < 6"):
            call()
    if offsets is not None:
        offsets[1] = 6
        with pytest.raises(IndexRangeError):
            ops.spmm(values, indices.clamp(max=5), offsets, W, **ON)


def test_nonsense_is_refused() -> None:
    values, indices, x, W = torch.ones(3, 2), torch.zeros(3, 2, dtype=torch.int32), torch.ones(3, 4), torch.ones(6, 4)
    for call in (
        lambda: ops.spmm(values[:, :1], indices, None, W, **ON),
        lambda: ops.spmm(values, indices, None, W[0], **ON),
        lambda: ops.spmm(values, indices.long(), None, W, **ON),
        lambda: ops.spmm_t(values, indices, None, x[1:], 6, **ON),
        lambda: ops.spmm_t(values, indices, None, x, -1, **ON),
        lambda: ops.sddmm(x[:, 1:], W, indices, None, None, **ON),
        lambda: ops.sddmm(x[1:], W, indices, None, None, **ON),
    ):
        with pytest.raises(SaeKernelsError):
            call()
    with pytest.raises(BackendError, match="dense: dtype is float64"):
        ops.spmm(values.double(), indices, None, W.double(), **ON)
    huge = torch.empty(1).expand(1 << 25, 1)
    with pytest.raises(BackendError, match="a line of the dense table has 33554432 numbers"):
        ops.spmm(values, indices, None, huge, **ON)
