"""Screening by products of few bits: what comes out is the choice among exact scores, whatever the numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.screening import HARD, Problem, assert_best, cut_small, no_vnni, normal
from torch import Tensor

from bench import cases
from sae_kernels.errors import ConfigError
from sae_kernels.kernels import _cpu
from sae_kernels.kernels._screen import BFLOAT16, INT8, INT16, chunks, integers, policy
from sae_kernels.kernels._screen.integers import candidates_room
from sae_kernels.kernels.linear_topk import cpu as linear_topk
from sae_kernels.kernels.linear_topk import screened
from sae_kernels.kernels.linear_topk.problem import Problem as LinearTopK

NAN = float("nan")
PRODUCTS = BFLOAT16


@pytest.fixture(autouse=True, params=[BFLOAT16, INT8, INT16])
def products(request: pytest.FixtureRequest, cpu: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """On, in small chunks, and never given up."""
    if request.param != BFLOAT16 and no_vnni():
        pytest.skip("AVX-512 without VNNI")
    monkeypatch.setenv("SAE_KERNELS_SCREENING", "on")
    monkeypatch.setattr(screened, "SCREENED_A_COMPUTED", 1)
    cut_small(monkeypatch)
    monkeypatch.setitem(globals(), "PRODUCTS", request.param)
    return request.param


def select(problem: Problem, k: int, among: Tensor | None = None) -> list[Tensor]:
    """The k best by screening alone."""
    found, done = screened.run(LinearTopK(*problem, [k], [False], [among]), PRODUCTS)
    assert done == problem[0].shape[0]
    return found


@pytest.mark.parametrize(
    ("n", "d", "m", "k"),
    [(40, 64, 2000, 20), (9, 768, 1500, 32), (5, 4096, 900, 9), (3, 1, 1, 1), (17, 67, 333, 333), (8, 300, 600, 9)],
)
def test_the_choice_is_exact(n: int, d: int, m: int, k: int) -> None:
    problem = normal(n, d, m)
    assert_best(problem, k, select(problem, k))
    z = problem[0].double() @ problem[1].double().T + problem[2].double()
    found = select(problem, k)
    torch.testing.assert_close(found[0].double(), z.gather(1, found[1].long()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_inputs(dtype: torch.dtype) -> None:
    for d, k in ((64, 30), (300, 8), (768, 30), (64, 1)):
        problem = normal(21, d, 1700, dtype)
        assert_best(problem, k, select(problem, k))


@pytest.mark.parametrize("kind", HARD)
@pytest.mark.parametrize("k", [1, 32])
def test_hard_numbers(kind: str, k: int) -> None:
    problem = HARD[kind](*normal(19, 96, 1200))
    assert_best(problem, k, select(problem, k))


@pytest.mark.parametrize("kind", [kind for kind in HARD if "denormal" in kind or kind == "small"])
@pytest.mark.usefixtures("one_thread")  # the mode is a thread's own: truth and kernel must run in the same one
def test_hard_numbers_with_denormals_flushed(kind: str) -> None:
    problem = HARD[kind](*normal(19, 96, 1200))
    before = _cpu.flush_denormals(True, 1)
    try:
        assert_best(problem, 32, select(problem, 32))
    finally:
        _cpu.flush_denormals(before, 1)


@pytest.mark.parametrize("kind", ["near ties", "outlier columns", "latents that are not finite", "all equal"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_hard_numbers_of_16_bits(kind: str, dtype: torch.dtype) -> None:
    x, W, b = HARD[kind](*normal(11, 128, 1200))
    problem = x.to(dtype), W.to(dtype), b.to(dtype)
    assert_best(problem, 32, select(problem, 32))


PINNED = """
import sys, pytest
products = sys.argv.pop(1)
if products != "bfloat16":
    from support import screening
    if screening.no_vnni():
        sys.exit()
    screening.screen_by(products)
chosen = ["-k", "(cpu and topk and not batch) or hard_numbers or 16_bit", *sys.argv[1:]]
sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *chosen]))
"""


@pytest.mark.parametrize("isa", _cpu.isas())
def test_these_and_the_tests_of_the_op_pass_in_every_isa(isa: str, products: str) -> None:
    """In a process of its own: the instruction set is chosen once."""
    mode = "on" if products == BFLOAT16 else "auto"
    tests = [str(Path(__file__).with_name(f"test_{name}.py")) for name in ("ops_linear", "cpu_screening")]
    run = subprocess.run(
        [sys.executable, "-P", "-c", PINNED, products, *tests],
        env={
            **os.environ,
            "SAE_KERNELS_SCREENING": mode,
            "SAE_KERNELS_ISA": isa,
            "PYTHONPATH": str(Path(__file__).parents[1]),
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout
    assert " passed" in run.stdout


def test_masks_and_several_selections() -> None:
    problem = normal(19, 64, 1200)
    few = torch.zeros(1200, dtype=torch.bool)
    few[300::211] = True
    masks = [None, torch.rand(1200) < 0.4, few, torch.zeros(1200, dtype=torch.bool), torch.rand(1200) < 0.9]
    ks = [1200, 64, 9, 3, 1]
    found, done = screened.run(LinearTopK(*problem, ks, [False] * 5, masks), PRODUCTS)
    assert done == 19
    for i, (k, mask) in enumerate(zip(ks, masks, strict=True)):
        assert_best(problem, k, found[2 * i : 2 * i + 2], mask)


@pytest.mark.parametrize("kind", HARD)
def test_hard_numbers_where_rows_of_W_lie_in_pieces(kind: str) -> None:
    x, W, b = HARD[kind](*normal(19, 96, 1200))
    problem = x, W.mT.contiguous().mT, b
    assert_best(problem, 32, select(problem, 32))
    among = torch.rand(1200) < 0.5
    assert_best(problem, 9, select(problem, 9, among), among)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("d", "m"), [(1, 1), (16, 32), (17, 33), (100, 65), (3, 7), (15, 31), (33, 1), (768, 96)])
def test_columns_become_rows(dtype: torch.dtype, d: int, m: int) -> None:
    stored = torch.randn(d, m + 9).to(dtype)
    for W in (stored[:, 4 : 4 + m].mT, stored[:, :m].contiguous().mT, stored[:, :m].mT.contiguous()):
        assert torch.equal(chunks.gathered(W, torch.full((m, d), NAN, dtype=dtype)), W)


def test_relu_no_bias_and_strides() -> None:
    x, W, _ = normal(19, 64, 1200)
    padded = torch.full((19, 70), NAN)
    padded[:, 3:67] = x
    for mine in (padded[:, 3:67], x.mT.contiguous().mT):
        (values, indices), _ = screened.run(LinearTopK(mine, W - 0.3, None, [900], [True], [None]), PRODUCTS)
        full, same = select((x, W - 0.3, torch.zeros(1200)), 900)
        assert torch.equal(indices, same)
        assert torch.equal(values, full.relu())
        assert (values == 0).any()


def test_any_number_of_threads_gives_the_same_bits(threads: Callable) -> None:
    """On ordinary numbers: unlike a GEMM, what is computed exactly is computed one score at a time."""
    problem, found = normal(40, 96, 1300), []
    for count in (1, 2, 3):
        with threads(count):
            found.append(select(problem, 25))
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


@pytest.mark.parametrize("kind", ["all equal", "tokens that are not finite", "past every bound"])
def test_what_bounds_cannot_decide_goes_to_float32(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screened, "SCREENED_A_COMPUTED", 12)
    x, W, b = HARD[kind](*normal(40, 96, 6000))
    if kind == "tokens that are not finite":
        x[17:] = NAN
    _, done = screened.run(LinearTopK(x, W, b, [8], [False], [None]), PRODUCTS)
    assert done < 40
    found = linear_topk.run(x, W, b, [8], [False], [torch.empty(0, dtype=torch.bool)])
    monkeypatch.setenv("SAE_KERNELS_SCREENING", "off")
    expected = linear_topk.run(x, W, b, [8], [False], [torch.empty(0, dtype=torch.bool)])
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("size", ["S", "L", "XL"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_memory_is_bounded(size: str, dtype: torch.dtype, products: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    n, d, m, k = (getattr(cases.SIZES[size], name) for name in ("n", "d", "d_sae", "k"))
    x, W = (torch.empty(1, d, dtype=dtype).expand(rows, d) for rows in (n, m))
    monkeypatch.setenv("SAE_KERNELS_SCREEN_CACHE", "0")
    rooms = [candidates_room(products, each, d) for each in (k, 4 * k)]
    scratch = chunks.ScreeningScores(x, W, screened.CANDIDATES_BYTES[products] // (12 * sum(rooms)), products)
    assert scratch.nbytes + 12 * sum(rooms) * scratch.rows <= 64 << 20


def test_when_it_screens(monkeypatch: pytest.MonkeyPatch) -> None:
    x, W = torch.empty(64, 128), torch.empty(2048, 128)
    pieces = W.mT.contiguous().mT
    assert policy.screens(x, W, [32]) == policy.screens(x, pieces, [32]) == BFLOAT16
    assert not policy.screens(x[:, :0], W[:, :0], [32])
    monkeypatch.setenv("SAE_KERNELS_SCREENING", "off")
    assert not policy.screens(x, W, [32])
    monkeypatch.setenv("SAE_KERNELS_SCREENING", "auto")
    monkeypatch.setattr(integers, "vnni", lambda: False)
    for pays in (False, True):
        monkeypatch.setattr(policy, "screening_pays", lambda pays=pays: pays)
        assert policy.screens(x, W, [32]) == (BFLOAT16 if pays else "")
    assert not policy.screens(x, pieces, [32])  # rows in pieces: only for many tokens
    assert policy.screens(x.repeat(16, 1), pieces, [32])
    assert not policy.screens(x[:, :32], W[:, :32], [32])
    assert not policy.screens(x, W[:512], [8])
    assert not policy.screens(x, W, [32, 256])
    monkeypatch.setenv("SAE_KERNELS_SCREENING", "maybe")
    with pytest.raises(ConfigError, match="SAE_KERNELS_SCREENING=maybe, expected one of auto, on, off"):
        policy.screens(x, W, [32])


def test_when_it_screens_in_8_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """With VNNI and without AMX, many tokens, no more than 4096 coordinates, and many latents for each one chosen."""
    monkeypatch.setenv("SAE_KERNELS_SCREENING", "auto")
    monkeypatch.setattr(integers, "vnni", lambda: True)
    monkeypatch.setattr(_cpu, "isa", lambda: "avx512")
    x, W, wide = torch.empty(256, 128), torch.empty(1 << 14, 128), (torch.empty(256, 3500), torch.empty(1 << 14, 3500))
    for pays, choice in ((False, 48), (True, 128)):
        monkeypatch.setattr(policy, "screening_pays", lambda pays=pays: pays)
        other = BFLOAT16 if pays else ""
        assert policy.screens(x, W, [16, (1 << 14) // choice - 16]) == INT8
        assert policy.screens(x, W, [(1 << 14) // choice + 1]) == other
        assert policy.screens(x, W, []) == INT8
        assert policy.screens(x[:255], W, [16]) == other
        assert policy.screens(*wide, [16]) == (BFLOAT16 if pays else INT8)
        for d, columns in ((768, INT8), (1000, BFLOAT16 if pays else INT8), (1500, other)):
            stored = torch.empty(d, 1 << 14)
            assert policy.screens(torch.empty(1024, d), stored.mT, [16]) == columns
            assert policy.screens(torch.empty(1024, d), stored.mT, []) == INT8  # θ is there from the start
    assert policy.screens_with_copy(x[:255], W, [16]) == INT8
    assert not policy.screens_with_copy(x, W, [16])
    monkeypatch.setattr(_cpu, "isa", lambda: "amx")
    assert policy.screens(x, W, [16]) == BFLOAT16


def test_when_it_screens_by_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """With AVX2 and nothing above it."""
    monkeypatch.setenv("SAE_KERNELS_SCREENING", "auto")
    monkeypatch.setattr(policy, "screening_pays", lambda: False)  # what this machine said before is remembered
    x, W = torch.empty(96, 5000), torch.empty(1 << 14, 5000)
    for isa, products in (("avx2", INT16), ("baseline", "")):
        monkeypatch.setattr(_cpu, "isa", lambda isa=isa: isa)
        assert policy.screens(x, W, [256, 256]) == products
        assert policy.screens_with_copy(x[:95], W, [16]) == products
        assert not policy.screens(x[:95], W, [16])
        assert not policy.screens(x, W, [683])
        assert policy.screens(x.repeat(11, 1), W.mT.contiguous().mT, [16]) == products
