"""A backward pass runs on the backend its forward was made under, whatever is in force where and when it runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import sae_kernels as sk
from bench import cases
from sae_kernels.plugins import plugins
from sae_kernels.specs import Kernel, resolve

ops = torch.ops.sae_kernels
SIZE = cases.Size(5, 4, 9, 3)
NAMES = ("spmm", "spmm_t", "sddmm", "spmm_backward", "prefix_decode", "linear_topk", "linear_threshold")
NAMES += ("linear_batch_topk",)
RAN: list[tuple[str, str]] = []  # (op, backend)


class Watched:
    """Two backends that both run the reference and say that they did."""

    @sk.hookimpl
    def sae_kernels_kernels(self) -> list[Kernel]:
        def watched(op: str, backend: str) -> Callable[..., object]:
            run = resolve(f"sae_kernels.kernels.{op}.reference:run")

            def told(*args: object) -> object:
                RAN.append((op, backend))
                return run(*args)

            return told

        def willing(*_: object) -> None: ...

        return [Kernel(op, name, watched(op, name), willing, -50) for op in NAMES for name in ("here", "there")]


@pytest.fixture(autouse=True)
def _watched() -> Iterator[None]:
    plugins().register(Watched(), "watched")
    RAN.clear()
    yield
    plugins().unregister("watched")


def leaves() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    values, indices, _ = cases.codes(SIZE, empty=0).flat()
    x, W = cases.normal(SIZE.n, SIZE.d, seed=1), cases.normal(SIZE.d_sae, SIZE.d, seed=2)
    return values.requires_grad_(), indices, x.requires_grad_(), W.requires_grad_()


NONE = cases.everyone()
FORWARDS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "spmm": lambda v, i, x, W: ops.spmm(v, i, None, W),
    "spmm_t": lambda v, i, x, W: ops.spmm_t(v, i, None, x, SIZE.d_sae),
    "sddmm": lambda v, i, x, W: ops.sddmm(x, W, i, None, None),
    "spmm_backward": lambda v, i, x, W: torch.cat([t.flatten() for t in ops.spmm_backward(x, v, i, None, W)]),
    "prefix_decode": lambda v, i, x, W: ops.prefix_decode(v, i, None, W, [4, 9]),
    "linear_topk": lambda v, i, x, W: ops.linear_topk(x, W, None, [3], [False], [NONE])[0],
    "linear_threshold": lambda v, i, x, W: ops.linear_threshold(x, W, None, torch.tensor(0.0))[0],
    "linear_batch_topk": lambda v, i, x, W: ops.linear_batch_topk(x, W, None, 9, True)[0],
}


@pytest.mark.parametrize("op", FORWARDS)
@pytest.mark.parametrize("where", ["outside", "another block", "another thread"])
def test_every_gradient_keeps_to_the_block_of_its_forward(op: str, where: str) -> None:
    with sk.use("here"):
        loss = FORWARDS[op](*leaves()).square().sum()
    if where == "another thread":
        thread = threading.Thread(target=loss.backward)
        thread.start()
        thread.join()
    elif where == "another block":
        with sk.use("there"):
            loss.backward()
    else:
        loss.backward()
    assert RAN[0] == (op, "here")
    assert len(RAN) > 1
    assert {backend for _, backend in RAN} == {"here"}


def test_without_a_choice_the_block_around_the_backward_decides() -> None:
    values, indices, _, W = leaves()
    loss = ops.spmm(values, indices, None, W, backend="").sum()
    with sk.use("there"):
        loss.backward()
    assert RAN == [("spmm_backward", "there")]


def test_the_argument_goes_before_the_block() -> None:
    values, indices, _, W = leaves()
    with sk.use("there"):
        ops.spmm(values, indices, None, W, backend="here").sum().backward()
    assert RAN == [("spmm", "here"), ("spmm_backward", "here")]


def test_a_compiled_graph_does_not_remember_the_block_it_was_compiled_in() -> None:
    values, indices, _, W = leaves()
    compiled = torch.compile(lambda v, w: ops.spmm(v, indices, None, w), fullgraph=True, backend="aot_eager")
    with sk.use("here"):
        compiled(values, W).sum().backward()
    assert RAN == [("spmm", "here"), ("spmm_backward", "here")]
    RAN.clear()
    with sk.use("there"):
        compiled(values, W).sum().backward()
    assert RAN == [("spmm", "there"), ("spmm_backward", "there")]
