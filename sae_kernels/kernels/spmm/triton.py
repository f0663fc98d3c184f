"""`spmm` in Triton: a program takes one token and a slab of d, and gathers that slab of its latents' rows.

Tokens run along the fast axis of the grid, so that at any time all programs work on the same slab of d: where the whole
W is too large for L2, a slab of it is not, and a row used by several tokens is read from memory once. BLOCK_K rows are
in flight at once; sums are kept apart by slot within the block and added in a fixed order.
"""

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


@triton.jit
def _spmm(
    values, indices, offsets, W, out, k, nnz: tl.int64, d_sae, d, W_stride: tl.int64,
    RAGGED: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < d
    start, end = row_bounds(offsets, row, k, nnz, RAGGED)
    sums = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    for first in range(start, end, BLOCK_K):
        slots = first + tl.arange(0, BLOCK_K)
        value = wide(tl.load(values + slots, mask=slots < end, other=0.0))
        latent = tl.load(indices + slots, mask=slots < end, other=0)
        legal = (latent >= 0) & (latent < d_sae)
        used = legal & (value != 0.0)  # an empty slot's row is not read: 0 · inf would be NaN
        rows = W + latent.to(tl.int64)[:, None] * W_stride + columns[None, :]
        weights = wide(tl.load(rows, mask=used[:, None] & inside[None, :], other=0.0))
        value = tl.where(legal, value, float("nan"))
        sums += value[:, None] * weights
    tl.store(out + row * d + columns, narrow(tl.sum(sums, 0), out.dtype.element_ty), mask=inside)


def configs(d_sae: int, d: int, itemsize: int) -> list[Config]:
    """The built-in choice first: 16-byte loads by every lane of one warp, narrower where a slab would leave L2."""
    wide = 512 // itemsize  # 32 lanes · 16 bytes
    slab = min(next_power_of_2(d), wide)
    first = slab if d_sae * slab * itemsize <= L2_SHARE else max(16, slab // 2)
    choices = [Config({"BLOCK_D": first, "BLOCK_K": 8}, num_warps=1)]
    for tile, slots, warps in ((slab, 8, 1), (slab, 4, 1), (2 * slab, 8, 2), (4 * slab, 4, 4), (slab // 2, 16, 1)):
        config = Config({"BLOCK_D": max(16, tile), "BLOCK_K": slots}, num_warps=warps)
        if config not in choices and tile < 2 * next_power_of_2(d):
            choices.append(config)
    return choices


def size_class(d_sae: int, d: int, itemsize: int) -> str:
    """What the best configuration depends on."""
    return f"{itemsize} bytes, d<={next_power_of_2(d)}, d_sae<={next_power_of_2(d_sae)}"


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
    config = pick("spmm", size_class(d_sae, d, W.itemsize), configs(d_sae, d, W.itemsize))
    grid = (codes.n, cdiv(d, config.tiles["BLOCK_D"]))
    _spmm[grid](
        codes.values, codes.indices, codes.offsets, W, out, codes.k, codes.nnz, d_sae, d, W.stride(0),
        RAGGED=codes.offsets is not None, **config.meta,
    )  # fmt: skip
    return out
