"""Dense or sparse: what the model says of known devices, who is chosen, what a damaged measurement does: nothing."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import sae_kernels as sk
from bench import cases
from sae_kernels.errors import SaeKernelsError
from sae_kernels.kernels._cost import constants, model
from sae_kernels.kernels._cost.constants import GENERIC_GPU, GPUS, Constants, in_force
from sae_kernels.kernels._cost.model import Sizes
from sae_kernels.plugins import plugins
from sae_kernels.specs import Kernel

ops = torch.ops.sae_kernels
CPU = torch.device("cpu")
PAIRS = {
    "spmm": (model.spmm, model.spmm_dense),
    "spmm_t": (model.spmm_t, model.spmm_t_dense),
    "sddmm": (model.sddmm, model.sddmm_dense),
    "spmm_backward": (model.spmm_backward, model.spmm_backward_dense),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache directory of its own, and everything forgotten before and after."""
    monkeypatch.setenv("SAE_KERNELS_CACHE", str(tmp_path / "cache"))
    constants.forget()
    yield tmp_path / "cache"
    monkeypatch.undo()
    constants.forget()


def ratio(c: Constants, k: int, m_over_k: float, **change: object) -> float:
    """Predicted dense over sparse decode at d 2304 in bfloat16."""
    m = int(m_over_k * k)
    size = Sizes(8192, 2304, m, 8192 * k, 2, "bfloat16")._replace(**change)
    return model.spmm_dense(c, size) / model.spmm(c, size)


def break_even(c: Constants, k: int) -> float:
    """M/k at which both take as long."""
    low, high = 1.0, 1e5
    while high / low > 1.01:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if ratio(c, k, middle) < 1 else (low, middle)
    return low


@pytest.mark.parametrize("k", [256, 512])
def test_break_even_on_an_h200_is_near_what_bandwidth_says(k: int) -> None:
    """GEMM · bytes / (2 · gather) = 790e12 · 2 / (2 · 4.3e12) = 184, less what it takes to write the table."""
    assert 120 < break_even(GPUS["H200"], k) < 195
    assert break_even(GPUS["H100"], k) > break_even(GPUS["H200"], k)  # the same GEMM, less bandwidth


@pytest.mark.parametrize("op", PAIRS)
@pytest.mark.parametrize("c", [*GPUS.values(), GENERIC_GPU, constants.built_in(CPU).constants])
def test_estimates_rise_with_every_size(op: str, c: Constants) -> None:
    base = Sizes(512, 64, 4096, 512 * 16, 2, "bfloat16")
    for formula in PAIRS[op]:
        assert 0 < formula(c, base) < math.inf
        for field in ("n", "d", "m", "nnz"):
            larger = base._replace(**{field: 16 * getattr(base, field)})
            assert formula(c, larger) >= formula(c, base), (formula.__name__, field)
        nothing = Sizes(0, 0, 0, 0, 2, "bfloat16")
        assert formula(c, nothing) >= 0


@pytest.mark.parametrize("op", PAIRS)
def test_a_wide_dictionary_is_for_the_sparse_kernel_and_a_narrow_one_for_the_gemm(op: str) -> None:
    sparse, dense = PAIRS[op]
    for c in (*GPUS.values(), constants.built_in(CPU).constants):
        wide, narrow = (
            Sizes(8192, 2304, 262_144, 8192 * 16, 2, "bfloat16"),
            Sizes(8192, 2304, 512, 8192 * 256, 2, "bfloat16"),
        )
        assert sparse(c, wide) < 0.5 * dense(c, wide)
        assert dense(c, narrow) < sparse(c, narrow)


def test_chunks_fit_into_the_scratch() -> None:
    for total, each in ((1, 1), (8192, 131_072), (8192, 33), (7, 10**12)):
        for matrix in (0, 1 << 30):
            rows = model.chunk(total, each, matrix)
            assert 1 <= rows <= total
            assert rows == 1 or rows * each <= max(matrix, model.SCRATCH_BYTES)


def known(gather: float) -> Constants:
    """A CPU that multiplies at 100 GFLOP/s and gathers as told."""
    return Constants(dict.fromkeys(constants.GEMM, 1e11), 8, 1e10, gather, gather, 1e6, 1e-9, 1e-9, 1e-9, 1e-18, 1e-18)


@pytest.fixture
def problem() -> tuple[sk.SparseCodes, torch.Tensor]:
    size = cases.Size(256, 64, 512, 128)
    return cases.codes(size), cases.normal(512, 64)


def test_the_cheaper_runs_and_explain_says_so(cpu: str, problem: tuple) -> None:
    constants.write(CPU, known(gather=1e12), "2026-11-21")
    told = sk.explain("decode", *problem)
    assert told.chosen == cpu
    assert "dense: would run (estimated" in str(told)
    assert "reference: would run\n" in f"{told}\n"  # nobody estimates the reference
    sparse = sk.decode(*problem)
    constants.write(CPU, known(gather=1e7), "2026-11-21")
    told = sk.explain("decode", *problem)
    assert told.chosen == "dense"
    assert "cheapest by estimate; constants: measured 2026-11-21" in str(told)
    torch.testing.assert_close(sk.decode(*problem), sparse, rtol=1e-4, atol=1e-4)
    assert sk.explain("decode", *problem, backend=cpu).chosen == cpu  # an explicit choice is one
    with sk.use(cpu):
        assert sk.explain("decode", *problem).chosen == cpu


def test_what_is_chosen_runs(cpu: str, problem: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    from sae_kernels.kernels import _dense

    calls = []
    product = _dense.product
    monkeypatch.setattr(_dense, "product", lambda *args: calls.append(1) or product(*args))
    constants.write(CPU, known(gather=1e12), "")
    sk.decode(*problem)
    assert not calls
    constants.write(CPU, known(gather=1e7), "")
    sk.decode(*problem)
    assert calls
    calls.clear()
    sk.decode(*problem, backend=cpu)
    assert not calls


def test_doubt_goes_to_the_gemm_where_the_device_is_known_and_to_sparse_where_not() -> None:
    guess = constants.InForce(GENERIC_GPU, "x", "", known=False)
    assert guess.margin < 1 < dataclasses.replace(guess, known=True).margin
    assert not constants.built_in(CPU).known


class Rivals:
    """Two strangers' kernels that say themselves how long they take."""

    def __init__(self, first: float, second: float) -> None:
        self.ms, self.ran = {"first": first, "second": second}, []

    @sk.hookimpl
    def sae_kernels_kernels(self) -> list[Kernel]:
        def kernel(name: str, priority: int) -> Kernel:
            def run(values, indices, offsets, W):
                self.ran.append(name)
                return W.new_zeros(values.shape[0], W.shape[1])

            return Kernel("spmm", name, run, lambda *_: None, priority, lambda *_: self.ms[name])

        return [kernel("first", 99), kernel("second", 98)]


@pytest.mark.parametrize(
    ("first", "second", "winner"),
    [(1e-9, 2e-9, "first"), (2e-9, 1e-9, "second"), (1e-9, math.nan, "first"), (1.5e-9, 1.2e-9, "first")],
)
def test_a_strangers_estimates_count_too(problem: tuple, first: float, second: float, winner: str) -> None:
    """On a device that is only guessed, the second must be clearly cheaper (the last case is not)."""
    rivals = Rivals(first, second)
    plugins().register(rivals, "rivals")
    try:
        sk.decode(*problem)
        assert rivals.ran == [winner]
        assert sk.explain("decode", *problem).chosen == winner
    finally:
        plugins().unregister("rivals")


def test_an_estimate_that_fails_stands_in_nobodys_way(problem: tuple) -> None:
    rivals = Rivals(1e-9, 1e-9)
    del rivals.ms["second"]
    plugins().register(rivals, "rivals")
    try:
        sk.decode(*problem)
        del rivals.ms["first"]
        constants.forget()
        sk.decode(*problem)
        assert rivals.ran == ["first", "first"]
    finally:
        plugins().unregister("rivals")


def test_written_constants_come_back(cache: Path) -> None:
    mine = known(gather=3e9)
    path = constants.write(CPU, mine, "2026-11-21")
    assert path.parent == cache
    assert path.name.startswith("calibration-")
    assert in_force(CPU).constants == mine
    assert in_force(CPU).known
    assert str(path) in in_force(CPU).source


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: "\0",
        lambda text: json.dumps({**json.loads(text), "version": 0}),
        lambda text: json.dumps({**json.loads(text), "device": "another"}),
        lambda text: json.dumps({**json.loads(text), "constants": {}}),
        lambda text: json.dumps({**json.loads(text), "constants": None}),
        lambda text: text.replace('"copy": 10000000000.0', '"copy": 0'),
        lambda text: text.replace('"copy": 10000000000.0', '"copy": "fast"'),
        lambda text: text.replace('"copy": 10000000000.0', '"copy": NaN'),
        lambda text: text.replace('"bfloat16"', '"bfloat61"'),
    ],
    ids=["cut", "list", "binary", "old", "foreign", "empty", "null", "zero", "text", "nan", "dtype"],
)
def test_a_file_that_is_not_what_it_should_be_is_named_once_and_ignored(
    damage: Callable[[str], str], problem: tuple
) -> None:
    path = constants.write(CPU, known(gather=1e7), "")
    text = path.read_text(encoding="utf-8")
    assert damage(text) != text
    path.write_text(damage(text), encoding="utf-8")
    constants.forget()
    with pytest.warns(RuntimeWarning, match="ignored") as caught:
        sk.decode(*problem)
    assert len(caught) == 1
    assert str(path) in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sk.decode(*problem)
    assert in_force(CPU) == constants.built_in(CPU)


def test_no_cache_directory_is_no_trouble(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, problem: tuple) -> None:
    sk.decode(*problem)
    assert not (tmp_path / "cache").exists()  # nothing is written unasked
    (tmp_path / "file").touch()
    monkeypatch.setenv("SAE_KERNELS_CACHE", str(tmp_path / "file" / "below"))
    constants.forget()
    with pytest.warns(RuntimeWarning, match="below"):
        sk.decode(*problem)


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from sae_kernels.settings import cache_dir

    monkeypatch.setenv("SAE_KERNELS_CACHE", "~/mine")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "mine"
    monkeypatch.delenv("SAE_KERNELS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "sae_kernels"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == tmp_path / ".cache" / "sae_kernels"


def test_nonsense_still_gets_the_kernels_own_error(cpu: str) -> None:
    with pytest.raises(SaeKernelsError):
        ops.spmm(torch.ones(3, 2), torch.zeros(3, 2, dtype=torch.int32), None, torch.ones(4))
