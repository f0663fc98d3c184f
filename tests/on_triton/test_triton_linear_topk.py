"""`linear_topk` in Triton: chunks so small that lists fill, overflow and are merged; Triton's own GEMM; memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from support.compare import assert_same
from torch import Tensor

from bench import cases
from sae_kernels.kernels._triton import gemm
from sae_kernels.kernels._triton.scores import budget
from sae_kernels.kernels._triton.tuning import Config, forced
from sae_kernels.kernels.linear_topk.triton import capacity, plans

ops = torch.ops.sae_kernels
NONE = torch.empty(0, dtype=torch.bool)
N, D, M = 7, 5, 211
MASK = torch.arange(M) % 3 == 0
NOBODY, TWO = torch.zeros(M, dtype=torch.bool), torch.arange(M) % 200 == 4
ORDERS = {
    "flat": torch.zeros(M),
    "rising": torch.arange(M) * 8.0,
    "falling": torch.arange(M) * -8.0,
    "steps": (torch.arange(M) // 40) * 50.0,
    "two in front": torch.where(TWO, 100.0, 0.0),
    "nan": torch.where(torch.arange(M) % 7 == 3, float("nan"), 0.0),
    "-inf": torch.where(torch.arange(M) % 9 == 3, 0.0, float("-inf")),
}


@contextlib.contextmanager
def chunks(rows: int, cols: int, rows_a_program: int = 4, part: int = 16) -> Iterator[None]:
    with (
        forced("linear_topk", Config({"ROWS": rows, "COLS": cols})),
        forced("linear_topk.fold", Config({"ROWS": rows_a_program, "PART": part})),
        forced("linear_topk.finish", Config({"ROWS": rows_a_program})),
    ):
        yield


def exact(dtype: torch.dtype, order: str = "flat") -> tuple[Tensor, Tensor, Tensor]:
    """Small integers: every sum is exact, and full of ties."""
    x, W = cases.integers(N, D, dtype=dtype, seed=1), cases.integers(M, D, dtype=dtype, seed=2)
    return x, W, ORDERS[order].to(dtype)


def same_as_the_reference(*args: object) -> list[Tensor]:
    mine, theirs = ops.linear_topk(*args, backend="triton"), ops.linear_topk(*args, backend="reference")
    for values, indices, their_values, their_indices in zip(
        mine[::2], mine[1::2], theirs[::2], theirs[1::2], strict=True
    ):
        order = [
            (w + M * (v == 0)).argsort(dim=1, stable=True)
            for v, w in ((values, indices), (their_values, their_indices))
        ]
        assert torch.equal(indices.gather(1, order[0]), their_indices.gather(1, order[1]))
        assert_same(values.gather(1, order[0]), their_values.gather(1, order[1]), signed_zeros=False)
    return mine


@pytest.mark.parametrize(("order", "cols"), [("rising", 16), ("flat", 16), *((order, 80) for order in ORDERS)])
def test_lists_fill_and_merge(order: str, cols: int) -> None:
    """16 latents a chunk are appended until the list overflows; of 80 the first chunk already does."""
    with chunks(7, cols, rows_a_program=8):
        out = same_as_the_reference(*exact(torch.float32, order), [9, 40], [True, False], [NONE, NONE])
    for indices in out[1::2]:
        assert (indices.diff(dim=1) > 0).all()


def test_every_dtype(dtype: torch.dtype) -> None:
    with chunks(4, 112):
        same_as_the_reference(*exact(dtype), [6], [False], [NONE])
        x, W, _ = exact(dtype)
        same_as_the_reference(x, W, None, [6], [True], [NONE])


@pytest.mark.parametrize("plan", [(7, 80), (5, 0)], ids=["lists", "all latents"])
def test_masks_with_fewer_than_k(plan: tuple[int, int]) -> None:
    with chunks(*plan):
        same_as_the_reference(*exact(torch.float32), [5, 3, 80], [False] * 3, [TWO, NOBODY, MASK])


def test_one_row_a_program() -> None:
    x, W, b = exact(torch.float32, "steps")
    with chunks(3, 80, rows_a_program=1):
        same_as_the_reference(x[:3], W, b, [9], [True], [NONE])


def test_every_k_up_to_all() -> None:
    with chunks(7, 80, rows_a_program=8):
        same_as_the_reference(*exact(torch.float32), [M, 130, 0], [False] * 3, [NONE] * 3)


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "strided"])
@pytest.mark.parametrize("tiles", [(16, 16, 16, 2), (32, 64, 32, 8)])
def test_gemm(dtype: torch.dtype, layout: str, tiles: tuple[int, int, int, int]) -> None:
    x = cases.layouts(cases.integers(37, 21, dtype=dtype, seed=1))[layout]
    W = cases.layouts(cases.integers(51, 21, dtype=dtype, seed=2))[layout]
    out = torch.empty(37, 51)
    with forced("gemm", Config(dict(zip(("BLOCK_N", "BLOCK_M", "BLOCK_D", "GROUP"), tiles, strict=True)))):
        gemm.product(x, W, out)
        assert torch.equal(out, x.float() @ W.float().T)
        assert torch.equal(gemm.product(x[:, :0], W[:, :0], torch.ones(37, 51)), torch.zeros(37, 51))


def test_selection_on_triton_s_gemm(dtype: torch.dtype) -> None:
    tiles = {"BLOCK_N": 16, "BLOCK_M": 64, "BLOCK_D": 16, "GROUP": 4}
    with forced("scores", Config({"TRITON": 1})), forced("gemm", Config(tiles)), chunks(7, 112):
        same_as_the_reference(*exact(dtype), [6], [True], [NONE])


SIZES = {"A": (8192, 65536, 64), "B": (16384, 131072, 64), "C": (4096, 16384, 32)}


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("name", SIZES)
def test_memory(name: str, itemsize: int) -> None:
    """Beside the outputs and with them: no more than a tenth of the (N, M) tensor."""
    n, m, k = SIZES[name]
    for tiles in (config.tiles for config in plans(n, m, itemsize, [k])):
        assert 0 < tiles["COLS"] <= 2048
        scores, lists = 4 * tiles["ROWS"] * tiles["COLS"], tiles["ROWS"] * (8 * capacity(k) + 8)
        assert scores + lists + n * k * (4 + itemsize) <= n * m * itemsize / 10


@pytest.mark.parametrize("ks", [[32], [512], [64, 512]], ids=str)
@pytest.mark.parametrize("m", [16_384, 65_536, 131_072])
def test_the_number_of_tokens_does_not_choose_the_width_of_a_chunk(m: int, ks: list[int]) -> None:
    """Kernels are compiled for a width: beyond 512 tokens another number of them compiles nothing."""
    tokens = (513, 777, 1024, 2048, 3001, 4096, 8192, 16_384, 1_000_000)
    built_in = [plans(n, m, 2, ks)[0].tiles for n in tokens]
    assert len({tiles["COLS"] for tiles in built_in}) == 1
    for n, tiles in zip(tokens, built_in, strict=True):
        assert 4 * tiles["ROWS"] * tiles["COLS"] <= budget(n, m, 2)
