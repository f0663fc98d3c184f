"""A dense table of codes on a GPU, and its inverse: the numbers of a table at the codes' positions.

Latents that stand in a row twice are found once, by comparing the row's slots with each other: every one of them then
carries the same sum, so that it does not matter which is stored last. No atomics, nothing is sorted.
"""

# pyright: reportCallIssue=false, reportArgumentType=false, reportInvalidTypeForm=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cast import narrow, wide
from .inputs import Codes, next_power_of_2
from .rows import row_bounds
from .tuning import Config, pick

MERGE = [
    Config({"BLOCK": 32}, num_warps=1),
    Config({"BLOCK": 64}, num_warps=4),
    Config({"BLOCK": 16}, num_warps=1),
]
SCATTER = [Config({"BLOCK": 64}, num_warps=1), Config({"BLOCK": 256}, num_warps=2)]


@triton.jit(do_not_specialize=["nnz"])
def _merge(
    values, indices, offsets, totals, k, nnz: tl.int64, d_sae,
    RAGGED: tl.constexpr, DROP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """totals[slot] = Σ of the values at the same latent in the slot's row, in the order of the slots."""
    row = tl.program_id(0).to(tl.int64)
    start, end = row_bounds(offsets, row, k, nnz, RAGGED)
    for first in range(start, end, BLOCK):
        mine = first + tl.arange(0, BLOCK)
        latent = tl.load(indices + mine, mask=mine < end, other=0)
        latent = tl.where((latent >= 0) & (latent < d_sae), latent, 0)
        sums = tl.zeros((BLOCK,), tl.float32)
        for start_other in range(start, end, BLOCK):
            other = start_other + tl.arange(0, BLOCK)
            value = wide(tl.load(values + other, mask=other < end, other=0.0))
            place = tl.load(indices + other, mask=other < end, other=0)
            legal = (place >= 0) & (place < d_sae)
            # An index outside the dictionary: its row becomes NaN by way of latent 0, or it is left out.
            value = tl.where(legal, value, 0.0 if DROP else float("nan"))
            place = tl.where(legal, place, 0)
            sums += tl.sum(tl.where(latent[:, None] == place[None, :], value[None, :], 0.0), 1)
        tl.store(totals + mine, narrow(sums, totals.dtype.element_ty), mask=mine < end)


@triton.jit(do_not_specialize=["first_row", "first_latent", "cols", "nnz"])
def _scatter(
    totals, indices, offsets, table, first_row: tl.int64, first_latent: tl.int64, cols: tl.int64,
    k, nnz: tl.int64, d_sae, RAGGED: tl.constexpr, CLEAR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """table[row, latent] = the row's total there, or 0 again, for the window of the table that begins at first_*."""
    local = tl.program_id(0).to(tl.int64)
    start, end = row_bounds(offsets, first_row + local, k, nnz, RAGGED)
    for first in range(start, end, BLOCK):
        slots = first + tl.arange(0, BLOCK)
        latent = tl.load(indices + slots, mask=slots < end, other=0)
        latent = tl.where((latent >= 0) & (latent < d_sae), latent, 0).to(tl.int64) - first_latent
        inside = (slots < end) & (latent >= 0) & (latent < cols)
        total = tl.zeros((BLOCK,), tl.float32)
        if not CLEAR:
            total += wide(tl.load(totals + slots, mask=inside, other=0.0))
        tl.store(table + local * cols + latent, narrow(total, table.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["first_row", "cols", "nnz"])
def _gather(
    table, indices, offsets, gate, out, first_row: tl.int64, cols: tl.int64, k, nnz: tl.int64, d_sae,
    RAGGED: tl.constexpr, GATED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out[slot] = table[row, latent of the slot]; 0 where its gate is closed, NaN outside the dictionary."""
    local = tl.program_id(0).to(tl.int64)
    start, end = row_bounds(offsets, first_row + local, k, nnz, RAGGED)
    for first in range(start, end, BLOCK):
        slots = first + tl.arange(0, BLOCK)
        latent = tl.load(indices + slots, mask=slots < end, other=0)
        legal = (latent >= 0) & (latent < d_sae)
        found = wide(tl.load(table + local * cols + latent.to(tl.int64), mask=(slots < end) & legal, other=0.0))
        found = tl.where(legal, found, float("nan"))
        if GATED:
            found = tl.where(wide(tl.load(gate + slots, mask=slots < end, other=0.0)) != 0.0, found, 0.0)
        tl.store(out + slots, narrow(found, out.dtype.element_ty), mask=slots < end)


def _pick(kernel: str, codes: Codes, choices: list[Config]) -> Config:
    size_class = "ragged" if codes.offsets is not None else f"k<={max(16, next_power_of_2(codes.k))}"
    return pick(kernel, size_class, choices)


class DeviceTable:
    """See `Table`."""

    def __init__(self, codes: Codes, dtype: torch.dtype, window: int, drop: bool) -> None:
        assert codes.values is not None
        self._codes, self._config = codes, _pick("scatter_codes", codes, SCATTER)
        self._totals = torch.empty(codes.nnz, dtype=dtype, device=codes.indices.device)
        self._scratch = torch.zeros(window, dtype=dtype, device=codes.indices.device)
        self._at: tuple[int, int, int, int] | None = None
        if codes.n and codes.nnz:
            config = _pick("merge_codes", codes, MERGE)
            _merge[codes.n,](
                codes.values, codes.indices, codes.offsets, self._totals, codes.k, codes.nnz, codes.d_sae,
                RAGGED=codes.offsets is not None, DROP=drop, **config.meta,
            )  # fmt: skip

    def fill(self, row: int, rows: int, latent: int, cols: int) -> Tensor:
        """See `Table`."""
        self._at = row, rows, latent, cols
        return self._write(clear=False)

    def clear(self) -> None:
        """See `Table`."""
        self._write(clear=True)

    def _write(self, clear: bool) -> Tensor:
        assert self._at is not None
        row, rows, latent, cols = self._at
        window = self._scratch[: rows * cols].view(rows, cols)
        codes = self._codes
        if codes.nnz:
            _scatter[rows,](
                self._totals, codes.indices, codes.offsets, window, row, latent, cols, codes.k, codes.nnz, codes.d_sae,
                RAGGED=codes.offsets is not None, CLEAR=clear, **self._config.meta,
            )  # fmt: skip
        return window


def gather(table: Tensor, codes: Codes, gate: Tensor | None, out: Tensor, row: int) -> None:
    """out[slot] = the number of `table` (rows, d_sae) there, for the slots of its rows; the first is `row`."""
    if codes.nnz == 0:
        return
    config = _pick("gather_codes", codes, SCATTER)
    _gather[table.shape[0],](
        table, codes.indices, codes.offsets, gate, out, row, table.shape[1], codes.k, codes.nnz, codes.d_sae,
        RAGGED=codes.offsets is not None, GATED=gate is not None, **config.meta,
    )  # fmt: skip
