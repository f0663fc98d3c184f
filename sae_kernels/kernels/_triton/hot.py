"""Sums over the slots of a latent, where some latents have most of the slots.

A latent with more than `split` slots is hot. The sorted slots are cut into windows of `split`; a hot latent is longer
than a window, so at most two of them have slots in it: one that holds its first slot, one that holds its last. Each
makes a piece: piece 2w is the one from the start of window w, piece 2w+1 the one up to its end, where that is another.
Programs sum pieces into `partials`, float32, and `combine` adds those of a latent in order. All sizes follow from the
number of slots: the host never waits to learn which latents are hot.
"""

# pyright: reportInvalidTypeForm=false, reportArgumentType=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cast import narrow
from .inputs import cdiv, next_power_of_2
from .tuning import Config, pick

WINDOWS = 4096  # at most, so that `partials` is at most 8192 rows


@triton.jit
def piece(keys, latent_offsets, number, nnz, d_sae, split):
    """(latent, its first slot, the one after its last, the piece's first slot, the one after its last) of an int64
    number; where there is no such piece, no slots."""
    first = (number // 2) * split
    last = tl.minimum(first + split, nnz) - 1
    opens = number % 2 == 0
    latent = tl.load(keys + tl.where(opens, first, last)).to(tl.int64)
    legal = (latent >= 0) & (latent < d_sae)
    begin = tl.load(latent_offsets + latent, mask=legal, other=0)
    stop = tl.load(latent_offsets + latent + 1, mask=legal, other=0)
    there = (stop - begin > split) & (opens | (begin > first))
    start = tl.where(there, tl.maximum(begin, first), 0)
    end = tl.where(there, tl.minimum(stop, last + 1), 0)
    return latent, begin, stop, start, end


@triton.jit
def latent_or_piece(keys, latent_offsets, program, pieces, nnz, d_sae, split):
    """(latent, first slot, the one after the last, whether there is anything to write) for programs numbered pieces
    first, as the longest, and latents after them."""
    if program < pieces:
        latent, _, _, start, end = piece(keys, latent_offsets, program, nnz, d_sae, split)
        wanted = end > start
    else:
        latent = program - pieces
        start = tl.load(latent_offsets + latent)
        end = tl.load(latent_offsets + latent + 1)
        wanted = end - start <= split
    return latent, start, end, wanted


@triton.jit(do_not_specialize=["nnz", "split"])
def _combine(
    keys, latent_offsets, partials, out, nnz: tl.int64, split: tl.int64, d_sae, d,
    BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0).to(tl.int64)
    latent, begin, stop, start, end = piece(keys, latent_offsets, number, nnz, d_sae, split)
    if (end > start) & (start == begin):
        columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
        inside = columns < d
        sums = tl.load(partials + number * d + columns, mask=inside, other=0.0)
        windows = (stop - 1) // split + 1
        for first in range(number // 2 + 1, windows, BLOCK_P):
            window = first + tl.arange(0, BLOCK_P)
            there = (window < windows)[:, None] & inside[None, :]
            sums += tl.sum(tl.load(partials + (2 * window * d)[:, None] + columns[None, :], mask=there, other=0.0), 0)
        tl.store(out + latent * d + columns, narrow(sums, out.dtype.element_ty), mask=inside)


class Hot:
    """How `nnz` slots are split: `split`, the number of `pieces` (0: no latent can be hot), and their `partials`."""

    def __init__(self, nnz: int, d: int, device: torch.device) -> None:
        least = pick("hot", "any", [Config({"SPLIT": 512})]).tiles["SPLIT"]
        self.nnz, self.d = nnz, d
        self.split = max(least, next_power_of_2(cdiv(nnz, WINDOWS)))
        self.pieces = 2 * cdiv(nnz, self.split) if nnz > self.split else 0
        self.partials = torch.empty(self.pieces, d, dtype=torch.float32, device=device)

    def combine(self, keys: Tensor, latent_offsets: Tensor, out: Tensor) -> None:
        """Write the rows of the hot latents, once their pieces are summed."""
        if self.pieces == 0:
            return
        wide = Config({"BLOCK_P": 16, "BLOCK_D": min(128, next_power_of_2(self.d))}, num_warps=2)
        config = pick("combine", f"d<={next_power_of_2(self.d)}", [wide])
        _combine[(self.pieces, cdiv(self.d, config.tiles["BLOCK_D"]))](
            keys, latent_offsets, self.partials, out, self.nnz, self.split, out.shape[0], self.d, **config.meta,
        )  # fmt: skip
