"""`spmm_t` in Triton: the slots are sorted by latent, then a program takes one latent and a slab of d.

Latents run along the fast axis of the grid, so that at any time all programs gather from one slab of X, which stays in
L2. A latent's slots are added in the order of the tokens, BLOCK_K rows in flight at once; one with too many slots for a
program is split (`_triton/hot.py`). Latents without slots are written as zeros.
"""

# pyright: reportInvalidTypeForm=false, reportArgumentType=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...errors import ShapeError
from .._triton import by_latent, same_dtype
from .._triton.cast import narrow, wide
from .._triton.hot import Hot, latent_or_piece
from .._triton.inputs import Codes, cdiv, launches, matrix, next_power_of_2
from .._triton.tuning import Config, pick


@triton.jit(do_not_specialize=["nnz", "pieces", "split"])
def _spmm_t(
    values, rows, keys, latent_offsets, X, out, partials, nnz: tl.int64, pieces: tl.int64, split: tl.int64, d_sae, d,
    X_stride, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    latent, start, end, wanted = latent_or_piece(keys, latent_offsets, program, pieces, nnz, d_sae, split)
    if wanted:
        columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
        inside = columns < d
        sums = tl.zeros((BLOCK_D,), tl.float32)
        for first in range(start, end, BLOCK_K):
            slots = first + tl.arange(0, BLOCK_K)
            value = wide(tl.load(values + slots, mask=slots < end, other=0.0))
            row = tl.load(rows + slots, mask=slots < end, other=0)
            at = X + row.to(tl.int64)[:, None] * X_stride + columns[None, :]
            used = (value != 0.0)[:, None] & inside[None, :]  # an empty slot's row is not read
            sums += tl.sum(value[:, None] * wide(tl.load(at, mask=used, other=0.0)), 0)
        if program < pieces:
            tl.store(partials + program * d + columns, sums, mask=inside)
        else:
            tl.store(out + latent * d + columns, narrow(sums, out.dtype.element_ty), mask=inside)


def configs(d: int, itemsize: int, aligned: bool) -> list[Config]:
    """The built-in choice first: one warp with 16-byte loads by every lane; the narrower X, the more slots at once.

    Rows that are not `aligned` are loaded an element at a time, each into a register of its own: half as many of them.
    """
    line = 512 // itemsize if aligned else 128  # 32 lanes · 16 bytes
    tile = min(next_power_of_2(d), line)
    slots = min(64, 8 * line // tile)
    choices = [Config({"BLOCK_D": tile, "BLOCK_K": slots}, num_warps=1)]
    if d > line:
        for wide_, slots, warps in ((line, 16, 1), (2 * line, 8, 2), (2 * line, 4, 1), (4 * line, 4, 4)):
            choices.append(Config({"BLOCK_D": wide_, "BLOCK_K": slots}, num_warps=warps))
    else:
        choices.append(Config({"BLOCK_D": tile, "BLOCK_K": max(1, slots // 4)}, num_warps=1))
    return choices


def why_not(values: Tensor, indices: Tensor, offsets: Tensor | None, X: Tensor, d_sae: int) -> str | None:
    """None, or why the Triton kernel declines."""
    return same_dtype(values, X)


@launches
def run(values: Tensor, indices: Tensor, offsets: Tensor | None, X: Tensor, d_sae: int) -> Tensor:
    """See `sae_kernels.kernels.spmm_t`."""
    if d_sae < 0:
        raise ShapeError(f"d_sae is {d_sae}, expected at least 0")
    X = matrix(X, "X")
    codes = Codes(values, indices, offsets, d_sae, X.dtype, rows=X.shape[0])
    d = X.shape[1]
    out = torch.empty(d_sae, d, dtype=X.dtype, device=X.device)
    if out.numel() == 0 or codes.n == 0 or codes.nnz == 0 or codes.values is None:
        return out.zero_()
    sorted_ = by_latent.sort(indices, offsets, codes)
    in_order = codes.values.flatten().gather(0, sorted_.order)
    hot = Hot(codes.nnz, d, X.device)
    aligned = d % 16 == 0 and X.stride(0) % 16 == 0  # as far as Triton looks
    size_class = f"{X.itemsize} bytes, d<={next_power_of_2(d)}{'' if aligned else ', unaligned'}"
    config = pick("spmm_t", size_class, configs(d, X.itemsize, aligned))
    _spmm_t[(hot.pieces + d_sae, cdiv(d, config.tiles["BLOCK_D"]))](
        in_order, sorted_.rows, sorted_.keys, sorted_.latent_offsets, X, out, hot.partials, codes.nnz, hot.pieces,
        hot.split, d_sae, d, X.stride(0), **config.meta,
    )  # fmt: skip
    hot.combine(sorted_.keys, sorted_.latent_offsets, out)
    return out
