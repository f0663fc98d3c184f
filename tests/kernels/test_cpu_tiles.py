"""`make amx`: tile instructions against NumPy, emulated or not, and that kernels use them and give them back."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sae_kernels.kernels import _cpu, _few
from sae_kernels.kernels._screen import integers
from sae_kernels.kernels._screen.rounded import Rounded, round_rows
from sae_kernels.kernels.linear_topk import cpu_int8

TILES = os.environ.get("SAE_KERNELS_TILES", "")
SIZES = (1, 2, 7, 15, 16)
PRODUCTS = {"bf16": 0, "signed signed": 1, "signed unsigned": 2, "unsigned signed": 3, "unsigned unsigned": 4}
ZERO = 5
LEAST = 2.0**-126
Array = np.ndarray[Any, np.dtype[Any]]


pytestmark = pytest.mark.skipif(TILES not in ("emulated", "hardware"), reason="tile instructions: make amx")


@pytest.fixture
def extension() -> Any:
    from sae_kernels import _cpu as extension  # pyright: ignore[reportAttributeAccessIssue]

    assert _cpu.isa() == "amx"
    return extension


def configuration(*tiles: tuple[int, int]) -> Tensor:
    """Rows and bytes a row of the first tiles."""
    config = torch.zeros(64, dtype=torch.uint8)
    config[0] = 1
    for i, (rows, row_bytes) in enumerate(tiles):
        config[16 + 2 * i], config[48 + i] = row_bytes, rows
    return config


def run(extension: Any, name: int, sizes: tuple[int, int, int], sums: Array, a: Array, b: Array) -> Array:
    """sums + a b by one instruction, all in arrays of a full tile's size."""
    rows, pieces, columns = sizes
    config = configuration((rows, 4 * columns), (rows, 4 * pieces), (pieces, 4 * columns))
    out, one, other = (torch.from_numpy(np.ascontiguousarray(each)).view(torch.uint8) for each in (sums.copy(), a, b))
    expected = config.clone()
    extension.try_product(name, config.data_ptr(), out.data_ptr(), one.data_ptr(), other.data_ptr())
    assert torch.equal(config, expected)  # what STTILECFG says
    return out.numpy().view(sums.dtype).reshape(sums.shape)


def flushed(x: Array) -> Array:
    """Denormals as zeros of their sign."""
    return np.where(np.abs(x) < LEAST, np.copysign(np.float32(0), x), x).astype(np.float32)


def rounded(exact: Array, rest: Array) -> Array:
    """float64 `exact` + `rest`, the latter less than half a unit in the last place of the former, as float32: to
    nearest even, denormals flushed."""
    bits = exact.view(np.int64)
    towards = np.nextafter(exact, np.where(rest > 0, np.inf, -np.inf))
    odd = np.where((rest != 0) & (bits & 1 == 0) & np.isfinite(exact), towards, exact)  # no tie that is none
    up = (odd * 2.0**100).astype(np.float32)  # where float32 has no denormals there: is it one after rounding?
    small = np.where(np.abs(up) < LEAST * 2.0**100, np.copysign(0, odd), np.copysign(LEAST, odd))
    return np.where(np.abs(odd) < LEAST, small, odd.astype(np.float32)).astype(np.float32)


def add(x: Array, y: Array) -> Array:
    """x + y of float64, rounded once, to float32."""
    total = x + y
    back = total - x
    rest = (x - (total - back)) + (y - back)
    return rounded(total, np.where(np.isfinite(total), rest, 0))


def bf16_product(sizes: tuple[int, int, int], sums: Array, a: Array, b: Array) -> Array:
    """TDPBF16PS: two fused sums, of the first and of the second of each pair; denormals are zeros."""
    rows, pieces, columns = sizes
    wide_a, wide_b = (flushed((each.astype(np.uint32) << 16).view(np.float32)).astype(np.float64) for each in (a, b))
    parts = []
    for which in (0, 1):
        part = np.zeros((rows, columns))
        for k in range(pieces):
            x, y = wide_a[:rows, 2 * k + which, None], wide_b[k, which : 2 * columns : 2]
            part = add(x * y, part).astype(np.float64)
        parts.append(part)
    out = sums.copy()
    pair = add(*parts).astype(np.float64)
    out[:rows, :columns] = add(flushed(sums[:rows, :columns]).astype(np.float64), pair)
    return out


def any_bf16(rng: np.random.Generator, kind: str) -> Array:
    """A tile's worth."""
    if kind == "any bits":
        return rng.integers(0, 1 << 16, (16, 32)).astype(np.uint16)
    scale = {"ordinary": 0, "around the least": -63, "denormal": -128, "huge": 62}[kind]
    values = (rng.standard_normal((16, 32)) * 2.0 ** (scale + rng.integers(-2, 3, (16, 32)))).astype(np.float32)
    return (values.view(np.uint32) >> 16).astype(np.uint16)


@pytest.mark.parametrize(
    ("left", "right"),
    [("ordinary", "ordinary"), ("around the least", "around the least"), ("denormal", "huge"), ("huge", "denormal"),
     ("huge", "huge"), ("any bits", "any bits"), ("ordinary", "any bits")],
)  # fmt: skip
def test_products_of_bfloat16(extension: Any, left: str, right: str) -> None:
    rng = np.random.default_rng(0)
    with np.errstate(all="ignore"):
        for sizes in product(SIZES, SIZES, SIZES):
            a, b = any_bf16(rng, left), any_bf16(rng, right)
            sums = rng.standard_normal((16, 16)).astype(np.float32)
            if left == right == "around the least":
                sums *= 2.0 ** rng.integers(-140, -110, (16, 16))
            sums[rng.random((16, 16)) < 0.1] = 0
            found, expected = run(extension, 0, sizes, sums, a, b), bf16_product(sizes, sums, a, b)
            assert np.array_equal(np.isnan(found), np.isnan(expected))
            same = (found.view(np.uint32) == expected.view(np.uint32)) | np.isnan(expected)
            assert same.all(), (sizes, found[~same], expected[~same])


def test_products_of_bfloat16_by_hand(extension: Any) -> None:
    a, b, sums = np.zeros((16, 32), np.float32), np.zeros((16, 32), np.float32), np.zeros((16, 16), np.float32)
    a[0, :4], b[:2, :2] = torch.tensor([2.0**24, 1, 0, 1]), 1  # the seconds of each pair are added up by themselves
    a[1, :8:2], b[:4, 2] = 2.0**-64, 2.0**-64  # four times 2^-128: each sum is flushed
    a[2, 0], b[0, 4], a[2, 2], b[1, 4] = 1.5, LEAST, 2.0**-63, -(2.0**-64)  # 2^-127 is not, before it is added
    sums[0, 0], sums[3, 0] = -(2.0**24), 2.0**-127
    one, other = ((each.view(np.uint32) >> 16).astype(np.uint16) for each in (a, b))
    found = run(extension, 0, (16, 16, 16), sums, one, other)
    assert found[0, 0] == 2
    assert found[1, 1] == 0
    assert found[2, 2] == LEAST
    assert found[3, 0] == 0


@pytest.mark.parametrize("name", [name for name in PRODUCTS if name != "bf16"])
@pytest.mark.parametrize("rows", range(1, 17))
def test_products_of_bytes(extension: Any, name: str, rows: int) -> None:
    rng = np.random.default_rng(rows)
    kinds = [np.int8 if word == "signed" else np.uint8 for word in name.split()]
    for pieces, columns in product(range(1, 17), range(1, 17)):
        a, b = (rng.integers(0, 256, (16, 64)).astype(np.uint8) for _ in range(2))
        if columns % 4 == 0:
            a[:], b[:] = rng.choice([127, 128, 255], (2, 16, 64))  # the largest there are, of either kind
        sums = rng.integers(-(2**31), 2**31, (16, 16)).astype(np.int32)
        wide_a = a.view(kinds[0]).astype(np.int64)[:rows, : 4 * pieces]
        wide_b = b.view(kinds[1]).astype(np.int64)[:pieces, : 4 * columns].reshape(pieces, columns, 4)
        expected = sums.copy()
        products = wide_a @ wide_b.transpose(0, 2, 1).reshape(4 * pieces, columns)
        expected[:rows, :columns] = (sums[:rows, :columns] + products).astype(np.uint32).view(np.int32)  # wraps
        assert np.array_equal(run(extension, PRODUCTS[name], (rows, pieces, columns), sums, a, b), expected)


@pytest.mark.parametrize("rows", SIZES)
def test_zero_and_what_a_store_leaves_alone(extension: Any, rows: int) -> None:
    sums = np.arange(256, dtype=np.int32).reshape(16, 16)
    nothing = np.zeros((16, 64), np.uint8)
    found = run(extension, ZERO, (rows, 3, 5), sums, nothing, nothing)
    assert not found[:rows, :5].any()
    found[:rows, :5] = sums[:rows, :5]
    assert np.array_equal(found, sums)


def test_states_of_several_threads(extension: Any) -> None:
    threads = 7
    states = torch.full((threads, 6, 64), 99, dtype=torch.uint8)
    extension.try_states(states.data_ptr(), threads)
    for t, (before, configured, released, loaded, reloaded, zeroed) in enumerate(states):
        assert not before.any()
        assert torch.equal(configured, configuration((0, 0), (0, 0), (0, 0), (1 + t, 64)))
        assert not released.any()
        assert (loaded == 100 + t).all()
        assert not reloaded.any()
        assert not zeroed.any()


@pytest.mark.skipif(TILES != "emulated", reason="the emulator counts")
@pytest.mark.parametrize("n", [1, 4, 16, 33])
@pytest.mark.parametrize("count", [1, 3])
def test_few_tokens_use_tiles_and_give_them_back(
    extension: Any, n: int, count: int, threads: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_few, "MOST_TOKENS", 33)
    x, W = torch.randn(n, 100), torch.randn(3000, 100)
    copy = round_rows(W, Rounded.empty(*W.shape, W.dtype))
    before, in_use, made = extension.tile_counts()
    assert in_use == 0
    with threads(count):
        _few.top_k(x, W, None, 9, False, None, copy)
    after, in_use, now = extension.tile_counts()
    assert in_use == 0
    assert now - made == (min(count, n * 3000 * 101 >> 17) if n > 3 else 0)  # once a thread
    assert (after - before > 3000 / 16 * 4) == (n > 3)  # products alone


@pytest.mark.skipif(TILES != "emulated", reason="the emulator counts")
@pytest.mark.parametrize("n", [4, 5, 40])
def test_bytes_use_tiles_and_give_them_back(extension: Any, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_int8, "kept", lambda W, *_: integers.Latents.empty(*W.shape, 8).of(W))
    before, _, _ = extension.tile_counts()
    cpu_int8.run(torch.randn(n, 100), torch.randn(3000, 100), None, [9], [False], [torch.empty(0, dtype=torch.bool)])
    after, in_use, _ = extension.tile_counts()
    assert in_use == 0
    assert (after - before > n * 50) == (n > 4)
