"""Screening by integers: the choice among exactly computed scores, for certain or but for a probability no test can
wait for."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.guarded import placed
from support.screening import HARD, Problem, assert_best, no_vnni, normal
from torch import Tensor

from sae_kernels.kernels import _cpu
from sae_kernels.kernels._screen import integers
from sae_kernels.kernels._screen.integers import CERTAIN, INT8, INT16
from sae_kernels.kernels.linear_topk import cpu as linear_topk
from sae_kernels.kernels.linear_topk import cpu_int8, in_integers, screened

KEPT, CHUNKS = "kept", "chunks"
BOUNDS = {"certain": INT8, "chance": INT8, "words-certain": INT16}


@pytest.fixture(autouse=True)
def _alone(cpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if no_vnni():
        pytest.skip("AVX-512 without VNNI")
    monkeypatch.setenv("SAE_KERNELS_SCREENING", "on")  # what becomes of rows that are given up: sums in one order
    monkeypatch.setattr(screened, "SCREENED_A_COMPUTED", 1)
    monkeypatch.setattr(cpu_int8, "LEAST_TOKENS", 1)
    monkeypatch.setattr(in_integers, "LEAST_PART", 64)
    monkeypatch.setattr(in_integers, "LATENTS_BYTES", 1 << 15)


def copied(W: Tensor, tokens: int, products: str) -> integers.Latents:
    return integers.Latents.empty(*W.shape, integers.BITS[products]).of(W)


@pytest.fixture(params=[f"{bounds}-{source}" for bounds in BOUNDS for source in (KEPT, CHUNKS)])
def source(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Bounds of either kind, integers of either size, with a copy of the weights or without."""
    bounds, source = request.param.rsplit("-", 1)
    monkeypatch.setattr(cpu_int8, "kept", copied if source == KEPT else lambda *_: None)
    monkeypatch.setattr(cpu_int8, "INT8", BOUNDS[bounds])
    if bounds != "chance":
        monkeypatch.setattr(cpu_int8, "widths", lambda m: CERTAIN)
    return request.param


@pytest.fixture(params=[INT8, INT16])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Integers of either size, their bounds certain."""
    monkeypatch.setattr(cpu_int8, "INT8", request.param)
    monkeypatch.setattr(cpu_int8, "widths", lambda m: CERTAIN)
    return request.param


def select(problem: Problem, k: int, among: Tensor | None = None) -> list[Tensor]:
    everyone = torch.empty(0, dtype=torch.bool)
    return cpu_int8.run(*problem, [k], [False], [everyone if among is None else among])


@pytest.mark.parametrize(
    ("n", "d", "m", "k"),
    [(40, 64, 2000, 20), (9, 768, 1500, 32), (5, 4096, 900, 9), (3, 1, 1, 1), (17, 67, 333, 333), (1, 100, 999, 5),
     (2, 259, 400, 16), (4, 48, 3000, 64), (8, 16, 65, 2), (25, 17, 700, 6)],
)  # fmt: skip
def test_the_choice_is_exact(source: str, n: int, d: int, m: int, k: int) -> None:
    problem = normal(n, d, m)
    assert_best(problem, k, select(problem, k))


@pytest.mark.parametrize("d", [1, 31, 32, 33, 63, 65, 100, 128])
def test_odd_sizes(source: str, d: int) -> None:
    """Tokens, latents and coordinates in and around whole tiles of either kind, and more than one of tokens."""
    for n, m in zip((*range(1, 34), 64, 100), (1, 15, 16, 17, 31, 33, 47, 63, 65, 192, 193, 385) * 3, strict=False):
        problem = normal(n, d, m)
        assert_best(problem, min(m, 7), select(problem, min(m, 7)))


@pytest.mark.parametrize("at_end", [True, False], ids=["behind", "before"])
def test_nothing_beside_a_copy_is_read(at_end: bool, products: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lies beside a page that nothing may touch."""

    def alone(W: Tensor, tokens: int, products: str) -> integers.Latents:
        *parts, bits = copied(W, tokens, products)
        packed, numbers = (placed(each, each.stride(), 0, 0, at_end) for each in parts)
        return integers.Latents(packed, numbers, bits)

    monkeypatch.setattr(cpu_int8, "kept", alone)
    for n, d, m in ((1, 16, 32), (3, 100, 33), (5, 33, 100), (9, 64, 65), (17, 1, 7), (20, 112, 32), (40, 31, 95)):
        problem = normal(n, d, m)
        assert_best(problem, min(m, 9), select(problem, min(m, 9)))


@pytest.mark.parametrize("n", [1, 3, 5, 12, 16, 17, 32, 33, 40])
@pytest.mark.parametrize("d", [1, 16, 17, 50, 64, 100, 190])
def test_integer_products_are_what_they_are(n: int, d: int, products: str) -> None:
    """Bounds of scores are made of integers and of numbers of one side alone: any instruction set has the same bits."""
    x, W = torch.randn(n, d), torch.randn(70, d)
    low, high, _ = _intervals(x, W, CERTAIN, products)
    each = [_intervals(x[t : t + 1], W, CERTAIN, products)[:2] for t in range(n)]  # one token: no tiles
    assert torch.equal(low, torch.cat([bounds[0] for bounds in each]))
    assert torch.equal(high, torch.cat([bounds[1] for bounds in each]))


@pytest.mark.parametrize("kind", HARD)
def test_hard_numbers(source: str, kind: str) -> None:
    problem = HARD[kind](*normal(14, 64, 1200))
    assert_best(problem, 11, select(problem, 11))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_inputs(source: str, dtype: torch.dtype) -> None:
    problem = normal(13, 128, 900, dtype)
    assert_best(problem, 12, select(problem, 12))


def test_masks_and_several_selections(source: str) -> None:
    problem = normal(19, 64, 1200)
    few = torch.zeros(1200, dtype=torch.bool)
    few[300::211] = True
    none = torch.empty(0, dtype=torch.bool)
    masks = [none, torch.rand(1200) < 0.4, few, torch.zeros(1200, dtype=torch.bool)]
    ks = [1200, 64, 9, 3]
    found = cpu_int8.run(*problem, ks, [False] * 4, masks)
    for i, (k, mask) in enumerate(zip(ks, masks, strict=True)):
        assert_best(problem, k, found[2 * i : 2 * i + 2], mask if mask.numel() else None)


def test_negative_ones_become_empty_slots(source: str) -> None:
    x, W, b = normal(5, 64, 300)
    everyone = torch.empty(0, dtype=torch.bool)
    values, _ = cpu_int8.run(x, W, b - 1.5, [50], [True], [everyone])
    assert (values >= 0).all()
    assert (values == 0).any()


@pytest.mark.parametrize("n", [1, 7, 30])
def test_any_number_of_threads_and_any_run_give_the_same(source: str, n: int, threads: Callable) -> None:
    problem = normal(n, 96, 3000)
    found = []
    for count in (1, 1, 2):
        with threads(count):
            found.append(select(problem, 8))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("recur", [False, True])
def test_latents_that_share_a_counter(
    products: str, recur: bool, threads: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left at the end is sorted by latents, with so many counters at a time; tokens that want the same ones."""
    monkeypatch.setattr(cpu_int8, "kept", lambda *_: None)
    x, W, b = normal(40, 24, (1 << 17) + 5)
    problem = x[torch.arange(40) % 5] if recur else x, W, b
    one = select(problem, 30)
    assert_best(problem, 30, one)
    with threads(9):
        assert all(torch.equal(a, b) for a, b in zip(one, select(problem, 30), strict=True))


def _intervals(x: Tensor, W: Tensor, widths: float = CERTAIN, products: str = INT8) -> tuple[Tensor, Tensor, Tensor]:
    """Between what each score is said to lie, and the scores, in float64."""
    (n, _), m, bits = x.shape, W.shape[0], integers.BITS[products]
    room = _cpu.ask("screened_topk_room", m)
    lists, progress, computed = torch.empty(3, n, room).int(), torch.empty(2, n).int(), torch.zeros(1).long()
    tokens, latents = integers.Tokens.of(x, bits), integers.Latents.empty(*W.shape, bits).of(W)
    state = (*(each.data_ptr() for each in (*lists, *progress)), computed.data_ptr(), n, m, room, 1)
    inputs = (*tokens.args(), *latents.args(0, m), *_cpu.pointers(x), *_cpu.pointers(W), 0, 0, widths)
    _cpu.call("integer_topk_fold", 0, bits, *state, *inputs)
    assert torch.equal(lists[2, :, :m], torch.arange(m).int().expand(n, m))
    high, low = (_score_of(keys[:, :m]).double() for keys in lists[:2])
    return low, high, x.double() @ W.double().mT


def _score_of(key: Tensor) -> Tensor:
    bits = key + 0x7FFFFF  # csrc/select/keys.inl.h, of float32
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).view(torch.float32)


FIXED: dict[str, Callable[[int, int], Tensor]] = {
    "normal": torch.randn,
    "one coordinate": lambda n, d: torch.eye(d).repeat(1 + n // d, 1)[:n] * torch.rand(n, 1),
    "constant": lambda n, d: torch.linspace(-1, 1, n).outer(torch.ones(d)),
    "outliers": lambda n, d: torch.randn(n, d) * torch.where(torch.arange(d) % 97 == 5, 300.0, 1.0),
    "a few of one size": lambda n, d: (torch.rand(n, d) < 0.02) * 1.0,
    "powers of two": lambda n, d: 2.0 ** torch.randint(-20, 20, (n, d)),
}


@pytest.mark.parametrize("tokens", FIXED)
@pytest.mark.parametrize("latents", FIXED)
def test_errors_are_as_the_derivation_says_whatever_the_rows(tokens: str, latents: str) -> None:
    """Within the bound; and their mean square, over many pairs, not above the variance the bound is made of."""
    n, m, d = 60, 500, 200
    low, high, truth = _intervals(FIXED[tokens](n, d), FIXED[latents](m, d), integers.widths(m))
    reach, error = (high - low) / 2, truth - (high + low) / 2
    assert (error.abs() <= reach).all()
    deviations = math.sqrt(2 * math.log(2 * m / integers.RISK))  # that the bound is from 0
    relative = (error / reach)[reach > 1e-20] * deviations
    assert relative.numel() > n * m / 2
    assert relative.square().mean().sqrt() < 1.15
    if tokens == latents == "normal":
        assert relative.square().mean().sqrt() > 0.8  # and not much wider than it has to be


@pytest.mark.parametrize("tokens", FIXED)
@pytest.mark.parametrize("latents", FIXED)
def test_certain_bounds_hold_whatever_the_rows(tokens: str, latents: str, products: str) -> None:
    """And are no wider than Cauchy-Schwarz has them, with errors of a step's twelfth squared a coordinate."""
    n, m, d = 60, 500, 200
    x, W = FIXED[tokens](n, d), FIXED[latents](m, d)
    low, high, truth = _intervals(x, W, CERTAIN, products)
    assert (low <= truth).all()
    assert (truth <= high).all()
    if tokens == latents == "normal":
        sizes = x.norm(dim=1)[:, None] * W.norm(dim=1)
        share = ((high - low) / 2 / sizes).mean()
        if products == INT8:
            assert 0.005 < share < 0.02
        else:
            assert 1 < share / (2 * d**0.5 / 32500 / 12**0.5) < 1.2


def test_sums_of_16_bits_stay_within_32() -> None:
    """Rows along each other, all of it in one coordinate or everywhere alike: the largest sums there are."""
    for d in (1, 64, 4096, integers.MOST_D):
        x = torch.stack([torch.eye(1, d)[0], -torch.ones(d), torch.linspace(0.9, 1, d), -torch.eye(1, d)[0]])
        low, high, truth = _intervals(x, x, CERTAIN, INT16)
        assert (low <= truth).all()
        assert (truth <= high).all()


def test_certain_bounds_hold_where_errors_add_up() -> None:
    """For a token along what rounding left of a latent. Bounds by chance do not: this token knows the dice."""
    W = torch.randn(40, 512)
    x = torch.randn(8000, 512)
    low, high, truth = _intervals(x, W)
    dropped = torch.linalg.lstsq(x.double(), truth - (low + high) / 2).solution.mT.float().contiguous()
    low, high, truth = (each.diagonal() for each in _intervals(dropped, W))
    assert ((low <= truth) & (truth <= high)).all()
    share = (truth - (low + high) / 2) / ((high - low) / 2)
    assert share.median() > 0.4  # one half is for what rounding left of the token
    low, high, _ = (each.diagonal() for each in _intervals(dropped, W, integers.widths(40)))
    assert (truth > high).all()


@pytest.fixture
def again(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each call had that settles what 8 bits did not."""
    calls: list[int] = []
    certain = linear_topk.certain

    def counted(part: Tensor, *rest: Any) -> list[Tensor]:
        calls.append(part.shape[0])
        return certain(part, *rest)

    monkeypatch.setattr(linear_topk, "certain", counted)
    return calls


@pytest.mark.parametrize("widths", [None, 0.02])
def test_exact_scores_outside_their_bounds_are_noticed(
    widths: float | None, again: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bounds that do not hold, whatever the reason: rows in which one is met are computed otherwise."""
    problem = normal(200, 64, 3000)
    if widths is not None:
        monkeypatch.setattr(cpu_int8, "widths", lambda m: widths)
    assert_best(problem, 20, select(problem, 20))
    assert again == ([200] if widths else [])


def test_rows_that_bounds_do_not_settle_are_computed_otherwise(
    source: str, again: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, W, b = normal(30, 64, 4000)
    monkeypatch.setattr(in_integers, "LEAST_PART", 4000)  # one list a token
    W[200:] = W[200] + 1e-4 * W[200:]  # for tokens along it, nearly equal and best; for the others, low
    along = torch.arange(30) % 10 == 3
    x = torch.where(along[:, None], 1, -1) * W[200] * 20 + 0.1 * x
    problem = x, W, b * 0
    assert_best(problem, 7, select(problem, 7))
    assert again == [int(along.sum())]


def test_few_tokens_of_weights_without_a_copy_are_not_screened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_int8, "LEAST_TOKENS", 10)
    monkeypatch.setattr(in_integers, "choose", lambda *_: pytest.fail("screened"))
    problem = normal(9, 64, 700)
    assert_best(problem, 5, select(problem, 5))


def test_what_is_declined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cpu, "isa", lambda: "avx512")
    monkeypatch.setattr(integers, "vnni", lambda: True)
    pieces = "W's rows do not lie in one piece, strides (1, 30) (needs inner stride 1: W.contiguous())"
    assert integers.why_not(torch.randn(64, 30).mT) == pieces
    assert integers.why_not(torch.empty(1, 1 << 16 | 1)) == "d is 65537 (needs at most 65536)"
    assert integers.why_not(torch._neg_view(torch.randn(30, 4))) == "W is a negated view (needs W.resolve_neg())"
    assert integers.why_not(torch.randn(30, 8)[::2, 1:]) is None


def test_machines_without_vnni_are_declined(monkeypatch: pytest.MonkeyPatch) -> None:
    W = torch.randn(9, 4)
    monkeypatch.setattr(_cpu, "isa", lambda: "avx2")
    assert integers.why_not(W) == "instruction set is avx2 (needs avx512 with VNNI)"
    monkeypatch.setattr(_cpu, "isa", lambda: "avx512")
    monkeypatch.setattr(integers, "vnni", lambda: False)
    assert integers.why_not(W) == "this processor lacks VNNI (needs avx512 with VNNI)"


def copies() -> int:
    """A number that tells rows of integers apart."""
    torch.manual_seed(5)
    found: list[int] = []
    for bits in integers.BITS.values():
        latents = integers.Latents.empty(70, 200, bits).of(torch.randn(70, 200))
        found += latents.packed.flatten().tolist() + integers.Tokens.of(torch.randn(9, 200), bits).starts.tolist()
    return hash(tuple(found))


PINNED = """
import sys, pytest
sys.path.insert(0, sys.argv[1])
import test_cpu_integers
print("copies", test_cpu_integers.copies())
some = "(exact or hard or certain) and not chunks"
sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-k", some, test_cpu_integers.__file__]))
"""


@pytest.mark.parametrize("isa", _cpu.isas())
def test_every_isa_rounds_alike_and_passes(isa: str) -> None:
    """In a process of its own: the instruction set is chosen once."""
    run = subprocess.run(
        [sys.executable, "-P", "-c", PINNED, str(Path(__file__).parent)],
        env={**os.environ, "SAE_KERNELS_ISA": isa, "PYTHONPATH": str(Path(__file__).parents[1])},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"copies {copies()}\n" in run.stdout
