"""One sort a backward pass: shared where nothing can have changed, and never otherwise."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from bench import cases
from sae_kernels.kernels._triton import by_latent
from sae_kernels.kernels._triton.inputs import Codes
from sae_kernels.kernels.transpose import triton as transpose

ops = torch.ops.sae_kernels
SIZE = cases.Size(6, 4, 10, 3)
ON = {"backend": "triton"}


@pytest.fixture(autouse=True)
def sorts(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Grows by one with every sort."""
    made: list[int] = []
    real = transpose.by_latent

    def counted(codes):
        made.append(codes.nnz)
        return real(codes)

    monkeypatch.setattr(transpose, "by_latent", counted)
    by_latent.clear()
    yield made
    assert not by_latent._kept, "a pass left its sort behind"


class GeneratedBackwardFor_sae_kernels_test(torch.autograd.Function):
    """Its name makes it one of the package's own formulas."""

    @staticmethod
    def forward(ctx, x: Tensor, action: Callable[[], object]) -> Tensor:
        ctx.action = action
        return x.clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        ctx.action()
        return grad, None


class Stranger(GeneratedBackwardFor_sae_kernels_test):
    """Somebody else's gradient."""


def in_backward(*actions: Callable[[], object], function=GeneratedBackwardFor_sae_kernels_test) -> None:
    """Run these, in this order, each in a gradient formula of one backward pass."""
    with torch.enable_grad():
        y = torch.zeros((), requires_grad=True)
        for action in reversed(actions):
            y = function.apply(y, action)
    y.backward()


def codes(ragged: bool = False) -> tuple[Tensor, Tensor, Tensor | None]:
    return cases.codes(SIZE, empty=0, ragged=ragged).flat()


X = cases.normal(SIZE.n, SIZE.d, seed=1)


def product(values: Tensor, indices: Tensor, offsets: Tensor | None = None, d_sae: int = SIZE.d_sae) -> Tensor:
    """The op under test, checked against the reference."""
    found = ops.spmm_t(values, indices, offsets, X, d_sae, **ON)
    torch.testing.assert_close(found, ops.spmm_t(values, indices, offsets, X, d_sae, backend="reference"))
    return found


@pytest.mark.parametrize("ragged", [False, True], ids=["fixed", "ragged"])
def test_encode_and_decode_share_one_sort(sorts: list[int], ragged: bool) -> None:
    """As in a training step: the decode's two gradients, the encode's for W_enc and for b_enc."""
    x = cases.normal(6, 4, seed=1).requires_grad_()
    W, b, W_dec, _ = (t.requires_grad_() for t in cases.dictionary(SIZE))
    theta = torch.tensor(0.1)
    gradients = []
    for backend in ("triton", "reference"):
        if ragged:
            with torch.no_grad():  # the selection itself is not the point
                _, indices, offsets = ops.linear_threshold(x, W, b, theta, backend="reference")
            values = ops.sddmm(x, W, indices, offsets, None, backend=backend)
        else:
            offsets = None
            values, indices = ops.linear_topk(x, W, b, [3], [True], [cases.everyone()], backend="reference")
            values = ops.sddmm(x, W, indices, None, values.detach(), backend=backend)
        before = len(sorts)
        ops.spmm(values, indices, offsets, W_dec, backend=backend).square().sum().backward()
        assert len(sorts) - before == (backend == "triton")
        gradients.append([t.grad for t in (W, W_dec)])
        W.grad = W_dec.grad = None
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_shared_within_a_pass_alone(sorts: list[int]) -> None:
    values, indices, _ = codes()
    in_backward(*[lambda: product(values, indices)] * 3)
    assert len(sorts) == 1
    in_backward(lambda: product(values, indices))
    assert len(sorts) == 2
    product(values, indices)
    product(values, indices)
    assert len(sorts) == 4


def test_views_of_the_same_indices_share(sorts: list[int]) -> None:
    values, indices, _ = codes()
    again = indices.flatten().view(SIZE.n, SIZE.k).detach()
    in_backward(lambda: product(values, indices), lambda: product(values, again), lambda: product(-values, indices))
    assert len(sorts) == 1


CHANGES: dict[str, Callable[[Tensor, Tensor], object]] = {
    "in place": lambda indices, offsets: indices.add_(1).remainder_(SIZE.d_sae),
    "through a view": lambda indices, offsets: indices[:2].zero_(),
    "through detach": lambda indices, offsets: indices.detach().fill_(3),
    "through a storage-sharing set_": lambda indices, offsets: indices.set_(indices.flip(0).contiguous()),
    "of offsets": lambda indices, offsets: offsets[1].add_(1),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_between_is_noticed(sorts: list[int], change: Callable[[Tensor, Tensor], object]) -> None:
    indices = cases.permutation(12).remainder(SIZE.d_sae).int()
    offsets = torch.tensor([0, 2, 4, 6, 8, 10, 12])
    values = cases.normal(12)
    in_backward(
        lambda: product(values, indices, offsets),
        lambda: change(indices, offsets),
        lambda: product(values, indices, offsets),
    )
    assert len(sorts) == 2


def test_other_arguments_are_other_sorts(sorts: list[int]) -> None:
    values, indices, _ = codes()
    wide = torch.cat([indices, indices.flip(1)], 1)
    flat, ends = indices.flatten(), torch.arange(SIZE.n + 1) * SIZE.k
    in_backward(
        lambda: product(values, indices),
        lambda: product(values, indices, d_sae=SIZE.d_sae + 1),
        lambda: product(values, wide[:, :3]),
        lambda: product(values, wide[:, 3:]),
        lambda: product(values.flatten(), flat, ends),
        lambda: product(values.flatten(), flat, ends.clamp(max=3 * SIZE.k).contiguous() * 0 + ends),
    )
    assert len(sorts) == 6


def test_an_address_cannot_come_to_mean_other_indices(sorts: list[int]) -> None:
    """The tensor that was sorted lives as long as its sort does, so nothing else can lie where it lies."""
    values = codes()[0]
    seen: set[int] = set()

    def fresh() -> None:
        gc.collect()
        indices = cases.permutation(18, seed=len(seen)).remainder(SIZE.d_sae).int().reshape(6, 3)
        kept = [each.sources[0].data_ptr() for each in by_latent._kept.values()]
        assert indices.data_ptr() not in kept
        seen.add(indices.data_ptr())
        product(values, indices)

    in_backward(*[fresh] * 6)
    assert len(sorts) == 6


def test_only_the_packages_own_formulas_share(sorts: list[int]) -> None:
    """A compiled graph's buffers change without a trace, and its backward is one node of another name."""
    values, indices, _ = codes()
    in_backward(*[lambda: product(values, indices)] * 2, function=Stranger)
    assert len(sorts) == 2


def test_a_compiled_backward_sorts_each_time(sorts: list[int]) -> None:
    values, indices, _ = codes()
    values.requires_grad_()
    W = cases.normal(SIZE.d_sae, SIZE.d, seed=2).requires_grad_()

    def twice(v: Tensor, w: Tensor) -> Tensor:
        return ops.spmm(v, indices, None, w, **ON) + ops.spmm(2 * v, indices, None, w, **ON)

    twice(values, W).sum().backward()
    assert len(sorts) == 1
    torch.compile(twice, fullgraph=True, backend="aot_eager")(values, W).sum().backward()
    assert len(sorts) == 3


def test_inference_tensors_have_no_version(sorts: list[int]) -> None:
    with torch.inference_mode():
        values, indices, _ = codes()
        indices = indices.clone()
    in_backward(*[lambda: product(values, indices)] * 2)
    assert len(sorts) == 2


def test_a_failed_pass_keeps_nothing_of_use(sorts: list[int]) -> None:
    values, indices, _ = codes()

    def fails() -> None:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        in_backward(lambda: product(values, indices), fails)
    in_backward(lambda: product(values, indices))
    assert len(sorts) == 2


def test_passes_inside_passes(sorts: list[int]) -> None:
    """As activation checkpointing makes them."""
    values, indices, _ = codes()
    before = []

    def inner() -> None:
        in_backward(*[lambda: product(values, indices)] * 2)
        before.append(len(sorts))

    in_backward(lambda: product(values, indices), inner, lambda: product(values, indices))
    assert before == [2]
    assert len(sorts) == 3  # one sort is kept, and the inner pass took its place


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backward passes at once, each with indices of its own; the interpreter is not for threads, so nothing is run."""
    monkeypatch.setattr(transpose, "by_latent", lambda codes: int(codes.indices[0, 0]))
    wrong: list[int] = []
    together = threading.Barrier(4)

    def work(seed: int) -> None:
        indices = torch.full((2, 2), seed, dtype=torch.int32)
        codes = Codes(None, indices, None, 4)

        def look() -> None:
            together.wait(10)
            if by_latent.sort(indices, None, codes) != seed:
                wrong.append(seed)

        in_backward(*[look] * 50)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


def test_the_op_itself_shares_nothing(sorts: list[int]) -> None:
    """Its outputs belong to the caller, who may write to them."""
    _, indices, _ = codes()
    in_backward(*[lambda: ops.transpose(indices, None, SIZE.d_sae, **ON)[0].zero_()] * 2)
    assert len(sorts) == 2
