"""How calls behave on a GPU: the host does not wait, nothing is compiled anew, streams and graphs are respected."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from support.compare import assert_same
from torch import Tensor

import sae_kernels as sk
from bench import cases
from sae_kernels.plugins import plugins
from sae_kernels.specs import Kernel

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("gpu")]
SIZE = cases.Size(700, 160, 3000, 24)


@pytest.fixture(autouse=True)
def _on_triton(gpu: None) -> Iterator[None]:
    with sk.use("triton"):
        yield


def leaves(n: int = SIZE.n) -> list[Tensor]:
    return [t.requires_grad_() for t in (cases.normal(n, SIZE.d), *cases.dictionary(SIZE))]


def forward(selection: sk.Selection, *inputs: Tensor) -> Tensor:
    x, W_enc, b_enc, W_dec, b_dec = inputs
    return sk.decode(sk.encode(x, W_enc, b_enc, selection), W_dec, b_dec)


@pytest.fixture
def sync() -> Iterator[Callable[[str], None]]:
    """`sync("error")`: an operation that makes the host wait raises."""
    yield torch.cuda.set_sync_debug_mode
    torch.cuda.set_sync_debug_mode("default")


def test_topk_never_makes_the_host_wait(sync: Callable[[str], None]) -> None:
    inputs = leaves()
    cotangent = cases.normal(SIZE.n, SIZE.d)
    forward(sk.TopK(SIZE.k), *inputs).backward(cotangent)  # compiles
    torch.cuda.synchronize()
    sync("error")
    forward(sk.TopK(SIZE.k), *inputs).backward(cotangent)
    sync("default")


@pytest.mark.parametrize("selection", [sk.Threshold(1.5), sk.BatchTopK(SIZE.k)], ids=lambda s: type(s).__name__)
def test_a_ragged_encode_waits_once_at_most(selection: sk.Selection, sync: Callable[[str], None]) -> None:
    """The number of values must be known before they have a place."""
    inputs = leaves()
    cotangent = cases.normal(SIZE.n, SIZE.d)
    forward(selection, *inputs).backward(cotangent)
    torch.cuda.synchronize()
    sync("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        y = forward(selection, *inputs)
    waits = [str(each.message) for each in caught if "synchroniz" in str(each.message)]
    assert len(waits) <= 1, waits
    sync("error")
    y.backward(cotangent)
    sync("default")


def test_only_a_new_number_of_tokens_compiles_nothing() -> None:
    import triton

    compiled: list[str] = []
    selections = sk.TopK(SIZE.k), sk.Threshold(1.5), sk.BatchTopK(SIZE.k)

    def all_of(n: int) -> None:
        for selection in selections:
            forward(selection, *leaves(n)).sum().backward()
        values, indices, offsets = cases.codes(cases.Size(n, SIZE.d, SIZE.d_sae, 24), ragged=True).flat()
        torch.ops.sae_kernels.prefix_decode(values, indices, offsets, leaves(1)[3], [5, 3000], backend="triton")
        torch.ops.sae_kernels.topk(cases.normal(n, 3000), 24, backend="triton")

    for n in (1024, 777):
        all_of(n)
    before = triton.knobs.runtime.jit_post_compile_hook
    triton.knobs.runtime.jit_post_compile_hook = lambda *_, **about: compiled.append(str(about.get("repr")))
    try:
        for n in (1025, 1040, 900, 2048, 3001):
            all_of(n)
    finally:
        triton.knobs.runtime.jit_post_compile_hook = before
    assert compiled == []


@torch.no_grad()
def test_a_second_stream() -> None:
    """What comes before on that stream is waited for: kernels run where they are called."""
    inputs = leaves()
    doubled = [2 * inputs[0], *inputs[1:]]
    expected = forward(sk.TopK(SIZE.k), *doubled)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        late = 2 * inputs[0]
        found = forward(sk.TopK(SIZE.k), late, *inputs[1:])
    stream.synchronize()
    assert_same(found, expected)


@torch.no_grad()
def test_a_cuda_graph_of_encode_and_decode() -> None:
    inputs = leaves()
    x = inputs[0].detach().clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            forward(sk.TopK(SIZE.k), x, *inputs[1:])
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = forward(sk.TopK(SIZE.k), x, *inputs[1:])
    for seed in (5, 6):
        x.copy_(cases.normal(SIZE.n, SIZE.d, seed=seed))
        graph.replay()
        assert_same(y, forward(sk.TopK(SIZE.k), x, *inputs[1:]))


class Loud:
    """Backends that would be taken before all others, and tell."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    @sk.hookimpl
    def sae_kernels_kernels(self) -> list[Kernel]:
        def of(op: str) -> Kernel:
            def run(*args: object) -> object:
                self.ran.append(op)
                return getattr(torch.ops.sae_kernels, op)(*args, backend="reference")

            return Kernel(op, "loud", run, lambda *_: None, priority=999)

        return [of(op) for op in ("spmm", "spmm_t", "sddmm")]


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_use_holds_in_the_backward(backend: str) -> None:
    """Gradients of the GPU are computed in a thread of autograd's own."""
    loud = Loud()
    plugins().register(loud, "loud")
    try:
        x, W_enc, b_enc, W_dec, b_dec = leaves()
        with sk.use(backend):
            sk.decode(sk.encode(x, W_enc, b_enc, sk.TopK(SIZE.k)), W_dec, b_dec).sum().backward()
    finally:
        plugins().unregister("loud")
    assert loud.ran == []


def test_compiled_with_inductor() -> None:
    torch._dynamo.reset()
    inputs, others = leaves(), leaves()
    compiled = torch.compile(lambda *t: forward(sk.TopK(SIZE.k), *t).square().mean(), fullgraph=True)
    mine, theirs = compiled(*inputs), forward(sk.TopK(SIZE.k), *others).square().mean()
    torch.testing.assert_close(mine, theirs)
    mine.backward()
    theirs.backward()
    for a, b in zip(inputs, others, strict=True):
        torch.testing.assert_close(a.grad, b.grad)
