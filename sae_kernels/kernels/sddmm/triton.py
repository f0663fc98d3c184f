"""`sddmm` in Triton: a program takes one token and some blocks of its slots, each a gather of BLOCK_K rows of B.

Along d a lane keeps one sum for every slot, of its own columns of each tile: neighbours where rows are read 16 bytes at
a time, else columns LANES apart. Lanes are added once, at the end, in a fixed order. The programs of a token are
neighbours in the grid: its row of A is read from memory once.
"""

# pyright: reportInvalidTypeForm=false, reportArgumentType=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...errors import ShapeError, describe
from .._triton import same_dtype
from .._triton.cast import narrow, wide
from .._triton.inputs import Codes, cdiv, launches, matrix, next_power_of_2
from .._triton.rows import row_bounds
from .._triton.tuning import Config, pick


@triton.jit(do_not_specialize=["nnz", "parts"])
def _sddmm(
    A, B, indices, offsets, gate, out, parts, k, nnz: tl.int64, d_sae, d, A_stride, B_stride,
    RAGGED: tl.constexpr, GATED: tl.constexpr, VECTOR: tl.constexpr, LANES: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) // parts).to(tl.int64)
    part = tl.program_id(0) % parts
    start, end = row_bounds(offsets, row, k, nnz, RAGGED)
    token = A + row * A_stride
    for first in range(start + part * BLOCK_K, end, parts * BLOCK_K):
        slots = first + tl.arange(0, BLOCK_K)
        latent = tl.load(indices + slots, mask=slots < end, other=0)
        legal = (latent >= 0) & (latent < d_sae)
        used = legal & (slots < end)
        if GATED:
            used &= wide(tl.load(gate + slots, mask=slots < end, other=0.0)) != 0.0
        rows = B + latent.to(tl.int64)[:, None] * B_stride
        sums = tl.zeros((BLOCK_K, LANES), tl.float32)
        for left in range(0, d, BLOCK_D):
            columns = left + tl.arange(0, BLOCK_D)
            inside = columns < d
            b = wide(tl.load(rows + columns[None, :], mask=used[:, None] & inside[None, :], other=0.0))
            a = wide(tl.load(token + columns, mask=inside, other=0.0))
            if VECTOR > 1:
                sums += tl.sum(tl.reshape(a[None, :] * b, (BLOCK_K, LANES, VECTOR)), 2)
            else:
                sums += tl.sum(tl.reshape(a[None, :] * b, (BLOCK_K, BLOCK_D // LANES, LANES)), 1)
        found = tl.where(used, tl.sum(sums, 1), tl.where(legal, 0.0, float("nan")))
        tl.store(out + slots, narrow(found, out.dtype.element_ty), mask=slots < end)


def configs(d: int, itemsize: int, aligned: bool) -> list[Config]:
    """The built-in choice first: 16-byte loads by every lane of one warp, if rows are aligned."""
    widest = 512 // itemsize if aligned else 128
    choices = [
        Config({"BLOCK_D": max(16, min(width, next_power_of_2(d))), "BLOCK_K": slots}, num_warps=warps)
        for width, slots, warps in (
            (widest, 8, 1), (widest, 4, 1), (widest, 16, 1), (2 * widest, 4, 1), (2 * widest, 8, 2), (4 * widest, 4, 4),
        )
    ]  # fmt: skip
    return list(dict.fromkeys(choices))


def size_class(d: int, itemsize: int, aligned: bool) -> str:
    """What the best configuration depends on."""
    return f"{itemsize} bytes{'' if aligned else ' unaligned'}, d<={next_power_of_2(d)}"


def why_not(A: Tensor, B: Tensor, indices: Tensor, offsets: Tensor | None, gate: Tensor | None) -> str | None:
    """None, or why the Triton kernel declines."""
    return same_dtype(A, B, gate)


@launches
def run(A: Tensor, B: Tensor, indices: Tensor, offsets: Tensor | None, gate: Tensor | None) -> Tensor:
    """See `sae_kernels.kernels.sddmm`."""
    A, B = matrix(A, "A"), matrix(B, "B")
    d_sae, d = B.shape
    if A.shape[1] != d:
        raise ShapeError(f"A is {describe(A)}, B {describe(B)}: expected one width")
    codes = Codes(gate, indices, offsets, d_sae, A.dtype, rows=A.shape[0])
    out = torch.empty(indices.shape, dtype=A.dtype, device=A.device)
    if codes.nnz == 0 or codes.n == 0:
        return out
    aligned = d % 16 == 0 and A.stride(0) % 16 == 0 and B.stride(0) % 16 == 0
    config = pick("sddmm", size_class(d, A.itemsize, aligned), configs(d, A.itemsize, aligned))
    block_k, block_d = config.tiles["BLOCK_K"], config.tiles["BLOCK_D"]
    vector = 16 // A.itemsize if aligned else 1
    parts = cdiv(codes.k or cdiv(codes.nnz, codes.n), block_k)  # of a ragged row: as its mean length wants
    _sddmm[(codes.n * parts,)](
        A, B, codes.indices, codes.offsets, codes.values, out, parts, codes.k, codes.nnz, d_sae, d,
        A.stride(0), B.stride(0), RAGGED=codes.offsets is not None, GATED=gate is not None,
        VECTOR=vector, LANES=block_d // vector if aligned else min(64, block_d), **config.meta,
    )  # fmt: skip
    return out
