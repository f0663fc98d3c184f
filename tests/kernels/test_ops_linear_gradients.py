"""Gradients of the fused encodes against float64 autograd of dense pre-acts, and gradcheck."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support import dense
from support.compare import assert_close
from torch import Tensor

from bench import cases

ops = torch.ops.sae_kernels
SIZE = cases.Size(23, 30, 90, 8)

Run = Callable[..., list[tuple[Tensor, Tensor, Tensor | None]]]  # x, W, b, backend -> codes of each selection


def _several(x: Tensor, W: Tensor, b: Tensor | None, backend: str) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    among = [cases.everyone(), torch.arange(90) % 3 == 0]
    out = ops.linear_topk(x, W, b, [8, 40], [True, True], among, backend=backend)
    return [(out[0], out[1], None), (out[2], out[3], None)]


RUNS: dict[str, Run] = {
    "topk": lambda x, W, b, backend: [
        (*ops.linear_topk(x, W, b, [8], [True], [cases.everyone()], backend=backend), None)
    ],
    "several": _several,
    "threshold": lambda x, W, b, backend: [ops.linear_threshold(x, W, b, torch.tensor(0.7), backend=backend)],
    "batch_topk": lambda x, W, b, backend: [ops.linear_batch_topk(x, W, b, 1100, True, backend=backend)],
}


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("name", RUNS)
def test_gradients_in_every_dtype(backend: str, dtype: torch.dtype, name: str, bias: bool) -> None:
    """batch_topk and `several` reach into negative pre-acts: those slots are empty and pass nothing."""
    W, b, _, _ = cases.dictionary(SIZE, dtype)
    x = cases.normal(SIZE.n, SIZE.d, dtype=dtype)
    leaves = [t.requires_grad_() for t in ((x, W, b) if bias else (x, W))]
    exact = [t.detach().double().requires_grad_() for t in leaves]
    z = dense.pre_acts(exact[0], exact[1], exact[2] if bias else None)
    total, truth = torch.zeros(()), torch.zeros((), dtype=torch.float64)
    for i, (values, indices, offsets) in enumerate(RUNS[name](x, W, b if bias else None, backend)):
        weights = cases.normal(*values.shape, dtype=dtype, seed=20 + i)
        total = total + (values * weights).float().sum()
        acts = dense.chosen_acts(z, indices, offsets, True)
        acts = acts[values != 0]  # `several` asks for 40 of 30 latents: ten slots are missing
        truth = truth + (acts * weights.double()[values != 0]).sum()
    found = torch.autograd.grad(total, leaves)
    expected = torch.autograd.grad(truth, exact)
    for mine, theirs, leaf in zip(found, expected, leaves, strict=True):
        assert mine.dtype == leaf.dtype
        assert_close(mine, theirs, factor=2)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", RUNS)
def test_gradcheck_of_the_reference(name: str) -> None:
    W, b, _, _ = cases.dictionary(SIZE, torch.float64)
    x = cases.normal(3, SIZE.d, dtype=torch.float64)
    W, b = W[:, :4].contiguous(), b
    x = x[:, :4].contiguous()
    run = {
        **RUNS,
        "batch_topk": lambda x, W, b, backend: [ops.linear_batch_topk(x, W, b, 60, True, backend=backend)],
    }[name]
    leaves = [t.requires_grad_() for t in (x, W, b)]
    assert torch.autograd.gradcheck(lambda *t: [codes[0] for codes in run(*t, "reference")], leaves)


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("wanted", ["x", "W", "b", "xW", "Wb", ""])
def test_only_what_asks_gets_a_gradient(backend: str, name: str, wanted: str) -> None:
    W, b, _, _ = cases.dictionary(SIZE)
    leaves = {"x": cases.normal(SIZE.n, SIZE.d), "W": W, "b": b}
    for leaf in wanted:
        leaves[leaf].requires_grad_()
    codes = RUNS[name](*leaves.values(), backend)
    for values, indices, offsets in codes:
        assert values.requires_grad == bool(wanted)
        assert not indices.requires_grad
        assert offsets is None or not offsets.requires_grad
    if wanted:
        sum(values.sum() for values, _, _ in codes).backward()  # pyright: ignore[reportAttributeAccessIssue]
    assert "".join(leaf for leaf, t in leaves.items() if t.grad is not None) == wanted


def test_one_of_several_selections_may_go_unused(backend: str) -> None:
    W, b, _, _ = cases.dictionary(SIZE)
    W.requires_grad_()
    x = cases.normal(SIZE.n, SIZE.d)
    first, _ = _several(x, W, b, backend)
    first[0].sum().backward()
    used = W.grad
    W.grad = None
    ops.linear_topk(x, W, b, [8], [True], [cases.everyone()], backend=backend)[0].sum().backward()
    assert torch.equal(used, W.grad)  # pyright: ignore[reportArgumentType]


def test_slots_set_to_zero_by_the_relu_pass_nothing(backend: str) -> None:
    x = torch.ones(2, 3)
    W = -torch.ones(5, 3)
    W[1] = 1
    leaves = [t.requires_grad_() for t in (x, W, torch.zeros(5))]
    values, _ = ops.linear_topk(*leaves, [4], [True], [cases.everyone()], backend=backend)
    values.sum().backward()
    x_grad, W_grad, b_grad = (t.grad for t in leaves)
    assert x_grad is not None
    assert W_grad is not None
    assert b_grad is not None
    assert x_grad.tolist() == [[1, 1, 1]] * 2
    assert W_grad.sum(1).tolist() == [0, 6, 0, 0, 0]
    assert b_grad.tolist() == [0, 2, 0, 0, 0]


def test_an_infinite_gradient_dies_in_an_empty_slot(backend: str) -> None:
    x, W = torch.ones(1, 2, requires_grad=True), -torch.ones(3, 2)
    values, _ = ops.linear_topk(x, W, None, [2], [True], [cases.everyone()], backend=backend)
    values.backward(torch.tensor([[float("inf"), float("nan")]]))
    assert x.grad is not None
    assert x.grad.tolist() == [[0, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["linear_topk", "linear_threshold"])
def test_weights_stored_by_columns_get_a_gradient_stored_so(cpu: str, name: str, dtype: torch.dtype) -> None:
    """The same bits, and laid out as the parameter is: nothing is left for autograd to copy."""
    x, W = torch.randn(40, 33).to(dtype), torch.randn(33, 70).to(dtype)
    rest = {
        "linear_topk": ([5], [False], [cases.everyone()]),
        "linear_threshold": (torch.tensor(0.5),),
    }[name]
    op = getattr(torch.ops.sae_kernels, name)
    grads = []
    for leaf in (W.clone().requires_grad_(), W.mT.contiguous().requires_grad_()):
        by_rows = leaf if leaf.shape[1] == 33 else leaf.mT
        values = op(x, by_rows, None, *rest, backend=cpu)[0]
        (grad,) = torch.autograd.grad(values.float().square().sum(), by_rows, retain_graph=True)
        assert grad.stride() == by_rows.stride()
        grads.append(torch.autograd.grad(values.float().square().sum(), leaf)[0])
    assert torch.equal(grads[0], grads[1].mT)
