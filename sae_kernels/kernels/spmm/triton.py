"""`spmm` in Triton: a program takes one token and a slab of d, and gathers that slab of its latents' rows.

Tokens run along the fast axis of the grid, so that at any time all programs work on the same slab of d: where the whole
W is too large for L2, a slab of it is not, and a row used by several tokens is read from memory once. The BLOCK_K loads
of a block are issued together, and summed, in a fixed order, before the next: a sum for every slot of the block would
hold registers that loads in flight need.
"""

# pyright: reportInvalidTypeForm=false, reportArgumentType=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._triton import same_dtype
from .._triton.cast import narrow, wide
from .._triton.inputs import Codes, cdiv, launches, matrix, next_power_of_2
from .._triton.rows import row_bounds
from .._triton.tuning import Config, pick

L2_SHARE = 24 << 20  # bytes of a slab of W that stay in L2 beside everything else (50 MB on an H100 or H200)


@triton.jit(do_not_specialize=["nnz"])
def _spmm(
    values, indices, offsets, W, out, k, nnz: tl.int64, d_sae, d, W_stride,
    RAGGED: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < d
    start, end = row_bounds(offsets, row, k, nnz, RAGGED)
    sums = tl.zeros((BLOCK_D,), tl.float32)
    for first in range(start, end, BLOCK_K):
        slots = first + tl.arange(0, BLOCK_K)
        value = wide(tl.load(values + slots, mask=slots < end, other=0.0))
        latent = tl.load(indices + slots, mask=slots < end, other=0)
        legal = (latent >= 0) & (latent < d_sae)
        used = legal & (value != 0.0)  # an empty slot's row is not read: 0 · inf would be NaN
        rows = W + latent.to(tl.int64)[:, None] * W_stride + columns[None, :]
        weights = wide(tl.load(rows, mask=used[:, None] & inside[None, :], other=0.0))
        value = tl.where(legal, value, float("nan"))
        sums += tl.sum(value[:, None] * weights, 0)
    tl.store(out + row * d + columns, narrow(sums, out.dtype.element_ty), mask=inside)


def configs(d_sae: int, d: int, itemsize: int, aligned: bool) -> list[Config]:
    """The built-in choice first: 16-byte loads by every lane of a warp if rows are aligned, and the widest slab of W
    that stays in L2, down to a cache line of each row."""
    line, widest = 128 // itemsize, min(next_power_of_2(d), 512 // itemsize if aligned else 128)
    first = widest
    while first > line and d_sae * first * itemsize > L2_SHARE:
        first //= 2
    tiles = [(first, 8, 1), (widest, 8, 1), (widest, 4, 1), (widest, 16, 1), (widest // 2, 8, 1), (widest // 2, 16, 1)]
    tiles += [(widest // 4, 16, 1), (2 * widest, 8, 2)]
    choices = [
        Config({"BLOCK_D": max(16, width), "BLOCK_K": slots}, num_warps=warps)
        for width, slots, warps in tiles
        if width < 2 * next_power_of_2(d)
    ]
    return list(dict.fromkeys(choices))


def size_class(d_sae: int, d: int, itemsize: int, aligned: bool) -> str:
    """What the best configuration depends on."""
    reads = f"{itemsize} bytes{'' if aligned else ' unaligned'}"
    return f"{reads}, d<={next_power_of_2(d)}, d_sae<={next_power_of_2(d_sae)}"


def why_not(values: Tensor, indices: Tensor, offsets: Tensor | None, W: Tensor) -> str | None:
    """None, or why the Triton kernel declines."""
    return same_dtype(values, W)


@launches
def run(values: Tensor, indices: Tensor, offsets: Tensor | None, W: Tensor) -> Tensor:
    """See `sae_kernels.kernels.spmm`."""
    W = matrix(W, "W")
    d_sae, d = W.shape
    codes = Codes(values, indices, offsets, d_sae, W.dtype)
    out = torch.empty(codes.n, d, dtype=W.dtype, device=W.device)
    if out.numel() == 0:
        return out
    kind = d_sae, d, W.itemsize, d % 16 == 0 and W.stride(0) % 16 == 0
    config = pick("spmm", size_class(*kind), configs(*kind))
    grid = (codes.n, cdiv(d, config.tiles["BLOCK_D"]))
    _spmm[grid](
        codes.values, codes.indices, codes.offsets, W, out, codes.k, codes.nnz, d_sae, d, W.stride(0),
        RAGGED=codes.offsets is not None, **config.meta,
    )  # fmt: skip
    return out
