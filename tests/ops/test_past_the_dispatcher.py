"""Public ops go past torch's dispatcher where it would only hand their arguments on; whoever looks on still sees
them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.compare import assert_same
from torch import Tensor
from torch._subclasses import FakeTensor, FakeTensorMode
from torch._subclasses.fake_tensor import DynamicOutputShapeException
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import sae_kernels as sk
from bench import cases
from sae_kernels.kernels import OPS, _kernel

SIZE = cases.Size(6, 5, 20, 3)


@pytest.fixture
def passed() -> list[str]:
    return []


@pytest.fixture(autouse=True)
def _watched(monkeypatch: pytest.MonkeyPatch, passed: list[str]) -> None:
    """`passed` holds what each call wanted that nobody looked on; "": nothing but a kernel."""
    decide = _kernel._wants

    def watching(args: Any, known: bool = False) -> str:
        found = decide(args, known)
        if isinstance(args, tuple):  # not a list among them
            passed.append(found)
        return found

    monkeypatch.setattr(_kernel, "_wants", watching)


def arguments() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    W, b, W_dec, _ = cases.dictionary(SIZE)
    return cases.normal(SIZE.n, SIZE.d), W, b, W_dec


def both(x: Tensor, W: Tensor, b: Tensor, W_dec: Tensor) -> Tensor:
    return sk.decode(sk.encode(x, W, b, sk.TopK(3)), W_dec)


def through_the_dispatcher(x: Tensor, W: Tensor, b: Tensor, W_dec: Tensor) -> Tensor:
    ops = torch.ops.sae_kernels
    values, indices = ops.linear_topk(x, W, b, [3], [True], [cases.everyone()])
    return ops.spmm(values, indices, None, W_dec)


def test_plain_calls_go_past_it_and_give_the_same(backend: str, passed: list[str]) -> None:
    args = arguments()
    past = ["", ""] if args[0].is_cpu else ["dispatcher", "dispatcher"]
    with sk.use(backend):
        assert_same(both(*args), through_the_dispatcher(*args))
        assert passed == past
        with torch.no_grad():
            args[1].requires_grad_()
            assert_same(both(*args), through_the_dispatcher(*args))
        assert passed == 2 * past


@pytest.mark.parametrize("which", range(4))
def test_a_gradient_is_recorded_for_whoever_wants_one(passed: list[str], which: int) -> None:
    mine, theirs = arguments(), arguments()
    mine[which].requires_grad_()
    theirs[which].requires_grad_()
    both(*mine).sum().backward()
    through_the_dispatcher(*theirs).sum().backward()
    found, expected = mine[which].grad, theirs[which].grad
    assert found is not None
    assert expected is not None
    assert_same(found, expected)
    assert passed[-1] == ("gradient" if mine[0].is_cpu else "dispatcher")


def test_what_is_recorded_is_what_the_dispatcher_records() -> None:
    """Several selections in one pass, one of them without a gradient; masks; first and second derivatives."""

    def derivatives(run: Callable[..., list[Tensor]]) -> list[Tensor]:
        args = [each.double().requires_grad_() for each in arguments()[:3]]
        mask = cases.some(SIZE.d_sae, 0.5)
        values = run(*args, [3, 2, 2], [False, True, False], [cases.everyone(), mask, cases.everyone()])[::2]
        first = torch.autograd.grad(values[0].square().sum() + values[1].exp().sum(), args, create_graph=True)
        again = torch.stack([each.square().sum() for each in first]).sum()
        return [*values, *first, *torch.autograd.grad(again, args)]

    for found, expected in zip(
        derivatives(OPS["linear_topk"]), derivatives(torch.ops.sae_kernels.linear_topk), strict=True
    ):
        assert_same(found, expected)


def seen_by_a_dispatch_mode() -> set[str]:
    seen = set()

    class Looking(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.add(str(func))
            return func(*args, **(kwargs or {}))

    with Looking():
        both(*arguments())
    return seen


def seen_by_a_function_mode() -> set[str]:
    seen = set()

    class Looking(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.add(str(func) + ".default")
            return func(*args, **(kwargs or {}))

    with Looking():
        both(*arguments())
    return seen


def seen_by_a_profiler() -> set[str]:
    with profile(activities=[ProfilerActivity.CPU]) as found:
        both(*arguments())
    return {f"{event.key.replace('::', '.')}.default" for event in found.key_averages()}


def seen_by_make_fx() -> set[str]:
    graph = make_fx(both)(*arguments())
    return {str(node.target) for node in graph.graph.nodes}


def seen_by_a_subclass() -> set[str]:
    seen = set()

    class Mine(Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            seen.add(str(func) + ".default")
            return super().__torch_function__(func, types, args, kwargs or {})

    x, *weights = arguments()
    both(x.as_subclass(Mine), *weights)
    return seen


@pytest.mark.parametrize(
    "look",
    [seen_by_a_dispatch_mode, seen_by_a_function_mode, seen_by_a_profiler, seen_by_make_fx, seen_by_a_subclass],
)
def test_whoever_looks_on_sees_the_ops(look: Callable[[], set[str]]) -> None:
    assert {"sae_kernels.linear_topk.default", "sae_kernels.spmm.default"} <= look()


def test_fake_tensors_stay_fake() -> None:
    mode = FakeTensorMode()
    fakes = [mode.from_tensor(each) for each in arguments()]
    for found in (both(*fakes), both(*(each.to("meta") for each in arguments()))):
        assert isinstance(found, FakeTensor) or found.is_meta
        assert found.shape == (SIZE.n, SIZE.d)


def test_a_mode_leaves_nothing_behind() -> None:
    """Thresholds are kept from call to call; not those that a mode made fake."""
    x, W, b, _ = arguments()
    theta = sk.Threshold(0.2718)
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(DynamicOutputShapeException):
        sk.encode(x, W, b, theta)
    z = F.linear(x, W, b)
    torch.testing.assert_close(sk.encode(x, W, b, theta).dense(), torch.where(z > 0.2718, z, 0))


def test_transforms_see_them(passed: list[str]) -> None:
    x, W, b, W_dec = arguments()
    with pytest.raises(RuntimeError):  # torch has no rule for ops of others
        torch.vmap(lambda row: both(row[None], W, b, W_dec))(x)
    assert passed == []


def test_negated_views(backend: str) -> None:
    """Of a complex number's conjugate: the dispatcher hands kernels the negative written out."""
    args = arguments()
    negated = tuple(torch.complex(each, -each).conj().imag for each in args)
    assert all(each.is_neg() for each in negated)
    with sk.use(backend):
        assert_same(both(*negated), both(*args))


def test_autocast_casts(passed: list[str]) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert both(*arguments()).dtype == torch.bfloat16
    assert passed == []
