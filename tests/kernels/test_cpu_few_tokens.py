"""A few tokens in one call: exactly those of the exactly computed scores, with a copy of W or without."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.few_tokens import CONTRADICTED, SCREENED, above, expect, select
from support.guarded import placed
from support.screening import HARD, exact_scores, normal
from torch import Tensor

from sae_kernels.errors import ShapeError
from sae_kernels.kernels import _cpu, _few
from sae_kernels.kernels._screen import kept, policy
from sae_kernels.kernels._screen.rounded import Rounded, round_rows
from sae_kernels.kernels.linear_threshold import cpu as linear_threshold
from sae_kernels.kernels.linear_threshold import screened as screened_threshold
from sae_kernels.kernels.linear_topk import cpu as linear_topk
from sae_kernels.kernels.linear_topk import screened as screened_topk

ops = torch.ops.sae_kernels
WAYS = ("direct", "widened", "dots")  # from W; from its copy in bfloat16, without and with instructions for it
COUNTS = (1, 2, 3, 4, 5, 9, 32)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

pytestmark = pytest.mark.usefixtures("copies_of_few")


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """All calls go this way."""
    if request.param == "dots" and not (_cpu.isa() in ("avx512", "amx") and _cpu.ask("fast_bf16")):
        pytest.skip("no fast instructions for bfloat16 here")

    def copy_of(W: Tensor, chosen: int, rows_a_look: int = 1) -> Rounded | None:
        rounded = round_rows(W, Rounded.empty(*W.shape, W.dtype))
        return None if request.param == "direct" else rounded

    monkeypatch.setattr(_few, "DOTS", request.param == "dots")
    monkeypatch.setattr(_few, "copy_of", copy_of)
    return request.param


@pytest.mark.parametrize("n", COUNTS)
@pytest.mark.parametrize(
    ("d", "m", "k"), [(64, 2000, 20), (67, 333, 333), (300, 400, 7), (769, 500, 32), (1, 1, 1), (4096, 120, 9)]
)
@pytest.mark.usefixtures("way")
def test_the_choice_is_exact(n: int, d: int, m: int, k: int) -> None:
    problem = normal(n, d, m)
    expect(problem, k)
    above(problem, torch.tensor(0.5))
    above(problem, torch.rand(m))
    z = problem[0].double() @ problem[1].double().T + problem[2].double()
    values, indices = select(problem, k)
    torch.testing.assert_close(values.double(), z.gather(1, indices.long()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("d", [1, 31, 32, 33, 63, 65, 100])
def test_odd_sizes(d: int, way: str, told: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens and latents in and around whole tiles of either kind, and more than one of tokens."""
    monkeypatch.setattr(_few, "MOST_TOKENS", 100)
    for n, m in zip((*range(1, 34), 64, 100), (1, 15, 16, 17, 31, 33, 47, 63, 65, 192, 193, 385) * 3, strict=False):
        problem = normal(n, d, m)
        expect(problem, min(m, 9))
        assert told[-1] == (0 if way == "direct" else SCREENED)
        above(problem, torch.tensor(0.7))
        assert not told[-1] & CONTRADICTED


@pytest.mark.parametrize("kind", HARD)
def test_hard_numbers_of_many_tokens(kind: str, way: str, told: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_few, "MOST_TOKENS", 100)
    problem = HARD[kind](*normal(37, 65, 999))
    expect(problem, 11)
    assert not any(each & CONTRADICTED for each in told)
    assert any(told) == (way != "direct")


@pytest.mark.parametrize("at_end", [True, False], ids=["behind", "before"])
def test_nothing_beside_a_copy_is_read(
    at_end: bool, way: str, told: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lies beside a page that nothing may touch."""
    whole = _few.copy_of

    def alone(W: Tensor, chosen: int, rows_a_look: int = 1) -> Rounded | None:
        copy = whole(W, chosen)
        return copy and Rounded(*(placed(each, each.stride(), 0, 0, at_end) for each in copy))

    monkeypatch.setattr(_few, "copy_of", alone)
    for n, d, m in ((5, 33, 100), (9, 64, 65), (17, 1, 7), (20, 100, 32), (32, 31, 95), (32, 96, 192)):
        expect(normal(n, d, m), min(m, 9))
    assert not any(each & CONTRADICTED for each in told)


def test_with_tiles_more_tokens_of_many_latents_go_the_same_way(
    monkeypatch: pytest.MonkeyPatch, told: list[int], threads: Callable
) -> None:
    monkeypatch.setattr(_few, "TILED_LATENTS", 1200)
    problem = normal(40, 65, 1203)
    ordinary = [select(problem, 9) for _ in range(3)][-1]  # by now there is a copy
    assert kept.counts == {"made": 1, "used": 1, "stale": 0}
    many = _cpu.isa() == "amx"
    assert len(told) == many
    monkeypatch.setattr(_cpu, "isa", lambda: "amx")
    found = select(problem, 9)
    assert told[-1] == SCREENED
    assert len(told) == many + 1
    assert all(torch.equal(one, two) for one, two in zip(found, ordinary, strict=True))
    x, W, _ = problem
    assert _few.copy_for_many(x, W, 9) is not None
    assert _few.copy_for_many(x[:32], W, 9) is None
    assert _few.copy_for_many(x.repeat(7, 1), W, 9) is None
    assert _few.copy_for_many(x, W[:1203], 9) is not None
    assert _few.copy_for_many(x, W[:1199], 9) is None
    assert _few.copy_for_many(x, W[:1201], 9) is None  # no copy
    assert _few.copy_for_many(x, W.bfloat16(), 9) is None
    monkeypatch.setattr(_few, "TILED_BYTES", 12 * _cpu.ask("screened_topk_room", 9) * 40)
    with threads(1):
        assert _few.copy_for_many(x, W, 9) is not None
    with threads(2):
        assert _few.copy_for_many(x, W, 9) is None
    with threads(1):
        W.mul_(2)
        assert _few.copy_for_many(x, W, 9) is None  # of others by now
    monkeypatch.setattr(_cpu, "isa", lambda: "avx512")
    expect((x, W, problem[2]), 9)
    assert _few.copy_for_many(x, W, 9) is None


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("d", [64, 300, 768])
@pytest.mark.usefixtures("way")
def test_16_bit_inputs(dtype: torch.dtype, d: int) -> None:
    for n in (1, 3, 21):
        problem = normal(n, d, 700, dtype)
        for k in (1, 30):
            expect(problem, k)
        above(problem, torch.tensor(0.8))


@pytest.mark.parametrize("kind", HARD)
@pytest.mark.parametrize("n", [8, 19])
def test_hard_numbers(kind: str, n: int, way: str, told: list[int]) -> None:
    x, W, b = HARD[kind](*normal(19, 96, 1200))
    problem = x[:n], W, b
    for k in (1, 32):
        expect(problem, k)
    z = exact_scores(*problem)
    finite = z[z.isfinite()]
    middle = finite.median() if finite.numel() else torch.tensor(0.0)
    for theta in (middle, finite.max() if finite.numel() else middle, z[4].nan_to_num()):
        above(problem, theta)
    assert not any(each & CONTRADICTED for each in told)
    assert any(told) == (way != "direct")


@pytest.mark.parametrize("kind", [kind for kind in HARD if "denormal" in kind or kind == "small"])
@pytest.mark.usefixtures("one_thread", "way")  # the mode is a thread's own: truth and kernel must run in the same one
def test_hard_numbers_with_denormals_flushed(kind: str) -> None:
    x, W, b = HARD[kind](*normal(19, 96, 1200))
    before = _cpu.flush_denormals(True, 1)
    try:
        expect((x[:7], W, b), 32)
    finally:
        _cpu.flush_denormals(before, 1)


@pytest.mark.usefixtures("way")
def test_masks_relu_no_bias_and_strides() -> None:
    x, W, b = normal(6, 64, 1200)
    few = torch.zeros(1200, dtype=torch.bool)
    few[300::211] = True
    for k, mask in ((64, torch.rand(1200) < 0.4), (9, few), (3, few & False), (1, torch.rand(1200) < 0.9)):
        expect((x, W, b), k, mask)
    padded = torch.full((1201, 70), float("nan"))
    padded[:1200, 3:67] = W
    spread = torch.full((6, 200), float("nan"))
    spread[:, 5:197:3] = x
    for mine in ((x.mT.contiguous().mT, W, b), (spread[:, 5:197:3], padded[:1200, 3:67], b)):
        same = zip(select(mine, 20), select((x, W, b), 20), strict=True)
        assert all(torch.equal(one, two) for one, two in same)
    full, indices = select((x, W - 0.3, torch.zeros(1200)), 900)
    assert all(
        torch.equal(one, two)
        for one, two in zip(
            linear_topk.run(x, W - 0.3, None, [900], [True], [None]), (full.relu(), indices), strict=True
        )
    )


@pytest.mark.usefixtures("way")
def test_any_number_of_threads_gives_the_same_bits(threads: Callable) -> None:
    problem, found = normal(9, 256, 5003), []
    for count in (1, 2, 3, 7):
        with threads(count):
            found.append([*select(problem, 25), *linear_threshold.run(*problem, torch.tensor(1.5))])
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


@pytest.mark.usefixtures("way")
def test_a_token_has_the_same_codes_in_any_company() -> None:
    x, W, b = normal(11, 200, 900)
    values, indices = select((x, W, b), 20)
    for t in range(11):
        alone = select((x[t : t + 1], W, b), 20)
        assert torch.equal(alone[0], values[t : t + 1])
        assert torch.equal(alone[1], indices[t : t + 1])


FILES = ("cpu_few_tokens", "cpu_few_tokens_kept", "ops_linear")
PINNED = """
import sys, pytest
CHOSEN = "(few_tokens and (choice or hard or 16_bit or threads or look)) or (ops_linear and cpu and topk and not batch)"
sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-k", CHOSEN, *sys.argv[1:]]))
"""


@pytest.mark.parametrize("isa", _cpu.isas())
def test_these_tests_pass_in_every_isa(isa: str) -> None:
    """In a process of its own: the instruction set is chosen once."""
    files = [Path(__file__).with_name(f"test_{name}.py") for name in FILES]
    run = subprocess.run(
        [sys.executable, "-P", "-c", PINNED, *map(str, files)],
        env={**os.environ, "SAE_KERNELS_ISA": isa},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout
    assert " passed" in run.stdout


def test_all_tokens_together_take_the_other_way_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """Screening of many tokens computes the same scores."""
    problem = normal(_few.MOST_TOKENS, 96, 1500)
    found = select(problem, 30), linear_threshold.run(*problem, torch.tensor(1.0))
    monkeypatch.setattr(_few, "MOST_TOKENS", 0)
    monkeypatch.setattr(screened_topk, "SCREENED_A_COMPUTED", 1)
    monkeypatch.setattr(screened_threshold, "SCREENED_A_COMPUTED", 1)
    others = select(problem, 30), linear_threshold.run(*problem, torch.tensor(1.0))
    for mine, theirs in zip(found, others, strict=True):
        assert all(torch.equal(one, two) for one, two in zip(mine, theirs, strict=True))


def test_what_it_takes(threads: Callable) -> None:
    x, W = torch.ones(33, 8), torch.ones(50, 8)
    assert not _few.takes(x[:32], W.bfloat16())
    assert _few.takes(x[:32], W, 50)
    assert not _few.takes(x, W)
    assert not _few.takes(x[:0], W)
    assert not _few.takes(x[:3, :0], W[:, :0])
    assert not _few.takes(x[:3], W.mT.contiguous().mT)
    assert not _few.takes(x[:3], torch._neg_view(W))
    with threads(2):
        assert not _few.takes(x[:3], W, _few.CANDIDATES // 5)
    assert policy.mode() == "on"


def test_thresholds_that_more_pass_than_there_was_room_for() -> None:
    problem = normal(5, 64, 3000)
    for theta in (-9.0, 0.0, 9.0, -9.0):
        above(problem, torch.tensor(theta))


def test_sizes_that_do_not_fit_are_refused() -> None:
    x, W, _ = normal(2, 64, 100)
    out = torch.empty(2, 101), torch.empty(2, 101, dtype=torch.int32)
    for k, columns in ((0, 64), (101, 64), (5, 63)):
        with pytest.raises(ShapeError, match="few_topk"):
            _cpu.tell(
                "few_topk", 0, x.data_ptr(), 2, columns, 64, *_cpu.pointers(W), 0, *_few.NO_COPY, k, False, 0,
                *(each.data_ptr() for each in out),
            )  # fmt: skip
