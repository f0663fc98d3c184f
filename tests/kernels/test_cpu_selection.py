"""The C++ selections against the reference, on scores both compute exactly, and with small chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor

from sae_kernels.kernels import _cpu, _pre_acts
from sae_kernels.kernels.linear_batch_topk import cpu as batch_cpu
from sae_kernels.kernels.linear_batch_topk import reference as batch_reference
from sae_kernels.kernels.linear_threshold import cpu as threshold_cpu
from sae_kernels.kernels.linear_threshold import reference as threshold_reference
from sae_kernels.kernels.linear_topk import cpu as linear_cpu
from sae_kernels.kernels.linear_topk import reference as linear_reference
from sae_kernels.kernels.topk import cpu as topk_cpu
from sae_kernels.kernels.topk import reference as topk_reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1, 1, 1), (3, 0, 40), (5, 7, 33), (37, 3, 1500), (130, 9, 700)]  # n, d, m
INF, NAN = float("inf"), float("nan")
Threads = Callable[[int], AbstractContextManager[None]]


@pytest.fixture(autouse=True)
def _needs_cpu(cpu: str) -> None: ...


@pytest.fixture(params=["whole", "chunked"])
def chunked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, threads: Threads) -> Iterator[None]:
    """The chunk sizes in use, and some that cut these small problems into pieces (too small for threads)."""
    with threads(1 if request.param == "chunked" else 2):
        if request.param == "chunked":
            cut_small(monkeypatch)
        yield


def cut_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of no more than 64 tokens and 256 latents."""
    for name, value in {"ROWS": 64, "COLS": 256, "SCORES": 1 << 14, "UPCAST": 1200}.items():
        monkeypatch.setattr(_pre_acts, name, value)
    monkeypatch.setattr(linear_cpu, "CANDIDATES_BYTES", 1 << 16)


def problem(n: int, d: int, m: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Small integers: exact in every dtype and in any order of summation, and full of ties."""
    g = torch.Generator().manual_seed(seed)
    x, W, b = (torch.randint(-3, 4, shape, generator=g).to(dtype) for shape in [(n, d), (m, d), (m,)])
    return x, W, b


def scores(kind: str, m: int) -> Tensor:
    """Four rows that are hard on selections."""
    row = torch.randn(4, m)
    rising = torch.arange(m).float()
    made = {
        "random": row,
        "constant": torch.tensor([1.5, 0.0, -INF, NAN])[:, None].expand(4, m),
        "rising": torch.stack([rising, -rising, rising.flip(0), rising // 7]),
        "two": (row > torch.tensor([[-2.0], [0.0], [2.0], [3.0]])).float(),
        "special": row.masked_fill(torch.rand(4, m) < 0.1, NAN).masked_fill(torch.rand(4, m) < 0.1, INF),
        "zeros": torch.where(row > 0, 0.0, -0.0).masked_fill(row > 2.5, 1e-40).masked_fill(row < -2, -1e-40),
        "bits": torch.randint(-(2**31), 2**31, (4, m)).int().view(torch.float32),
    }
    return made[kind]


def same_rows(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    """Codes of fixed width, up to the order inside a row."""
    order = expected[1].sort(dim=1, stable=True)
    assert torch.equal(found[1], order.values)
    torch.testing.assert_close(found[0], expected[0].gather(1, order.indices), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", ["random", "constant", "rising", "two", "special", "zeros", "bits"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_topk(kind: str, dtype: torch.dtype) -> None:
    for m in (1, 31, 1025, 4803):
        x = scores(kind, m).to(dtype)
        for k in {k for k in (1, 2, m // 17, m // 5, m) if 0 < k <= m}:
            same_rows(topk_cpu.run(x, k), topk_reference.run(x, k))


def test_topk_takes_any_row_stride_and_more_than_2_to_the_31_scores() -> None:
    row = torch.randn(1, 32_768)
    values, indices = topk_cpu.run(row.expand(70_000, -1), 2)
    expected = row.topk(2)
    assert torch.equal(values.sort(descending=True).values, expected.values.expand(70_000, 2))
    assert torch.equal(indices, expected.indices.sort().values.int().expand(70_000, 2))
    gaps = torch.randn(40, 600)[::3, 11:511]
    same_rows(topk_cpu.run(gaps, 20), topk_reference.run(gaps, 20))
    same_rows(topk_cpu.run(gaps.mT, 5), topk_reference.run(gaps.mT, 5))


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize(("n", "d", "m"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_topk(n: int, d: int, m: int, dtype: torch.dtype) -> None:
    x, W, b = problem(n, d, m, dtype)
    few = torch.zeros(m, dtype=torch.bool)
    few[m // 3 :: 11] = True
    ks, relus = [1, min(32, m), m, min(40, m), min(200, m)], [True, False, True, False, True]
    among = [torch.empty(0, dtype=torch.bool)] * 3 + [few, torch.rand(m) < 0.9]
    for bias in (b, None):
        found = linear_cpu.run(x, W.mT.contiguous().mT, bias, ks, relus, among)
        expected = linear_reference.run(x, W, bias, ks, relus, among)
        for i, k in enumerate(ks):
            values, indices = found[2 * i : 2 * i + 2]
            filled = k if among[i].numel() == 0 else min(k, int(among[i].sum()))
            assert values.dtype == dtype
            assert not values[:, filled:].any()
            assert not indices[:, filled:].any()
            wanted = (expected[2 * i][:, :filled], expected[2 * i + 1][:, :filled])
            same_rows((values[:, :filled], indices[:, :filled]), wanted)


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize(("n", "d", "m"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_threshold(n: int, d: int, m: int, dtype: torch.dtype) -> None:
    x, W, b = problem(n, d, m, dtype)
    thetas = [torch.tensor(2.0), torch.tensor(-INF), torch.tensor(INF), torch.randint(-5, 9, (m,)).float()]
    for theta in thetas:
        found, expected = threshold_cpu.run(x, W, b, theta), threshold_reference.run(x, W, b, theta)
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize(("n", "d", "m"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_batch_topk(n: int, d: int, m: int, dtype: torch.dtype) -> None:
    x, W, b = problem(n, d, m, dtype)
    for count in {0, 1, min(17, n * m), n * m // 3, n * m}:
        found = batch_cpu.run(x, W, b, count, count % 2 == 1)
        expected = batch_reference.run(x, W, b, count, count % 2 == 1)
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


def test_special_pre_acts_rank_and_pass_as_the_reference_has_it() -> None:
    x, W = torch.ones(3, 1), torch.randn(2000, 1)
    W[::7], W[5::90], W[6::50] = NAN, INF, -INF
    for k in (3, 300, 1999):
        args = (x, W, None, [k], [True], [torch.empty(0, dtype=torch.bool)])
        same_rows(tuple(linear_cpu.run(*args)), tuple(linear_reference.run(*args)))  # pyright: ignore[reportArgumentType]
    for mine, reference, args in (
        (threshold_cpu, threshold_reference, (torch.tensor(NAN),)),
        (threshold_cpu, threshold_reference, (torch.tensor(1.0),)),
        (batch_cpu, batch_reference, (500, False)),
        (batch_cpu, batch_reference, (1500, True)),
    ):
        both = zip(mine.run(x, W, None, *args), reference.run(x, W, None, *args), strict=True)
        for found, expected in both:
            torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_a_batch_that_overflows_its_candidates_again_and_again() -> None:
    """Equal within a row, better from row to row: every score enters, and every cut is a tie."""
    x, W = torch.arange(700.0)[:, None], torch.ones(6000, 1)
    values, indices, offsets = batch_cpu.run(x, W, None, 50_123, False)
    assert torch.equal(offsets.diff()[-9:], torch.tensor([2123] + [6000] * 8))
    assert offsets[-10] == 0
    assert torch.equal(indices, torch.cat([torch.arange(2123), torch.arange(6000).repeat(8)]).int())
    assert torch.equal(values, torch.arange(700.0)[-9:].repeat_interleave(offsets.diff()[-9:]))


def test_any_number_of_threads_gives_the_same_bits(threads: Threads) -> None:
    """On small integers, whose sums are exact in any order: how a BLAS splits its sums is its own affair."""
    for n in (1, 7, 11, 200):
        x, W, b = ((2 * torch.randn(*shape)).round() for shape in ((n, 33), (1111, 33), (1111,)))
        found = []
        for count in (1, 2):
            with threads(count):
                out = linear_cpu.run(x, W, b, [20], [True], [torch.empty(0, dtype=torch.bool)])
                out += threshold_cpu.run(x, W, b, torch.tensor(3.0))
                found.append(out + list(batch_cpu.run(x, W, b, 20 * n, True)))
        assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def test_no_tokens_and_gradients_asked_for() -> None:
    x, W = torch.empty(0, 4), torch.randn(9, 4, requires_grad=True)
    values, indices = linear_cpu.run(x, W, None, [3], [True], [torch.empty(0, dtype=torch.bool)])
    assert values.shape == indices.shape == (0, 3)
    assert threshold_cpu.run(x, W, None, torch.tensor(0.0))[2].tolist() == [0]
    assert batch_cpu.run(x, W, None, 0, True)[2].tolist() == [0]
    (values, _) = linear_cpu.run(torch.randn(2, 4), W, None, [3], [False], [torch.empty(0, dtype=torch.bool)])
    assert not values.requires_grad


def test_declines_with_a_reason() -> None:
    assert _cpu.why_not() is None
    assert "float64" in (topk_cpu.why_not(torch.randn(2, 3).double(), 1) or "")
    x, W = torch.randn(2, 3), torch.randn(4, 3)
    assert "dtypes differ" in (linear_cpu.why_not(x, W.half(), None, [1], [True], []) or "")
    assert threshold_cpu.why_not(x, W, None, torch.tensor(0.0)) is None
    assert batch_cpu.why_not(x, W, None, 1, True) is None
