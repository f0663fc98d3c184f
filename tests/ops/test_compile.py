"""`torch.compile(fullgraph=True)` with Inductor: the same numbers, forward and backward, as eager."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from support.compare import assert_close, assert_same

import sae_kernels as sk
from bench import cases

SIZE = cases.Size(24, 16, 80, 5)
MASK = torch.arange(80) % 3 == 0


@pytest.fixture(autouse=True)
def _poisoned() -> None:
    """Inductor plans its own buffers: poisoning is for the kernels' tests."""


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def leaves() -> list[torch.Tensor]:
    return [t.requires_grad_() for t in (cases.normal(SIZE.n, SIZE.d), *cases.dictionary(SIZE))]


def top_k(x, W_enc, b_enc, W_dec, b_dec):
    """Two selections in one pass, decode, prefixes, and a loss around them: everything a training step has."""
    codes, aux = sk.encode(x - b_dec, W_enc, b_enc, (sk.TopK(5), sk.TopK(9, among=MASK)))
    y = sk.decode(codes, W_dec, b_dec)
    nested = sk.prefix_decode(codes, W_dec, b_dec, [20, 80])
    extra = sk.decode(aux, W_dec)
    return codes.values, codes.indices, (x - y).square().sum() + extra.square().mean() + nested.square().mean()


def batch_top_k(x, W_enc, b_enc, W_dec, b_dec):
    codes = sk.encode(x, W_enc, b_enc, sk.BatchTopK(5))
    return codes.values, codes.indices, (x - sk.decode(codes, W_dec, b_dec)).square().sum()


def threshold(x, W_enc, b_enc, W_dec, b_dec):
    codes = sk.encode(x, W_enc, b_enc, sk.Threshold(0.8))
    return codes.values, codes.indices, (x - sk.decode(codes, W_dec, b_dec)).square().sum()


@pytest.mark.slow
@pytest.mark.parametrize("function", [top_k, batch_top_k, threshold])
def test_inductor_gives_what_eager_gives(function: Callable) -> None:
    compiled = torch.compile(function, fullgraph=True)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        for _ in range(2):  # the second call runs without compiling
            mine, theirs = leaves(), leaves()
            values, indices, loss = compiled(*mine)
            eager_values, eager_indices, eager_loss = function(*theirs)
            assert_same(indices, eager_indices)
            assert_close(values, eager_values.double())
            assert_close(loss, eager_loss.double())
            for got, expected in zip(
                torch.autograd.grad(loss, mine), torch.autograd.grad(eager_loss, theirs), strict=True
            ):
                assert_close(got, expected.double())


@pytest.mark.slow
def test_any_batch_size_with_one_graph() -> None:
    """After two sizes the batch is symbolic: no recompilation for a third."""
    _, W_enc, b_enc, W_dec, b_dec = leaves()

    def step(x: torch.Tensor) -> torch.Tensor:
        return sk.decode(sk.encode(x, W_enc, b_enc, sk.TopK(5)), W_dec, b_dec)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for n in (24, 7):
        compiled(cases.normal(n, SIZE.d))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for n in (5, 100):
            x = cases.normal(n, SIZE.d)
            assert_same(compiled(x), step(x))


def test_the_choice_of_backend_reaches_into_a_compiled_graph() -> None:
    """Kernels are chosen when the op runs, so `use` and a refusal work there as they do in eager."""
    compiled = torch.compile(lambda x: sk.topk(x, 3), fullgraph=True, backend="eager")
    x = cases.normal(4, 20, dtype=torch.float64)
    compiled(x)
    with sk.use("cpu"), pytest.raises(sk.errors.BackendError, match="cpu"):
        compiled(x)
