"""x Wᵀ in Triton, with float32 sums and a float32 result: where torch's GEMM cannot give one for 16-bit inputs.

A plain tiled product. Tiles of neighbouring tokens and latents are computed together, so that they meet in L2.
"""

# pyright: reportCallIssue=false, reportInvalidTypeForm=false, reportArgumentType=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import interpreting
from .cast import wide
from .inputs import cdiv
from .tuning import Config, pick

_WIDE = tl.constexpr(interpreting())  # whose bfloat16 products are wrong


@triton.jit(do_not_specialize=["n"])
def _gemm(
    x, W, out, n: tl.int64, m, d, x_n, x_d, W_m, W_d,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    tiles_n, tiles_m = tl.cdiv(n, BLOCK_N).to(tl.int32), tl.cdiv(m, BLOCK_M)
    tile = tl.program_id(0)
    group = tile // (GROUP * tiles_m)
    height = tl.minimum(tiles_n - group * GROUP, GROUP)
    place = tile % (GROUP * tiles_m)
    rows = (group * GROUP + place % height).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = (place // height) * BLOCK_M + tl.arange(0, BLOCK_M)
    depth = tl.arange(0, BLOCK_D)
    left = x + (rows * x_n)[:, None] + (depth * x_d)[None, :]
    right = W + (columns.to(tl.int64) * W_m)[None, :] + (depth * W_d)[:, None]
    sums = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for first in range(0, d, BLOCK_D):
        inside = depth < d - first
        a = tl.load(left, mask=(rows < n)[:, None] & inside[None, :], other=0.0)
        b = tl.load(right, mask=(columns < m)[None, :] & inside[:, None], other=0.0)
        if _WIDE:
            a, b = wide(a), wide(b)
        sums = tl.dot(a, b, sums, input_precision=PRECISION)
        left += BLOCK_D * x_d
        right += BLOCK_D * W_d
    tl.store(out + (rows * m)[:, None] + columns[None, :], sums, mask=(rows < n)[:, None] & (columns < m)[None, :])


def configs(itemsize: int) -> list[Config]:
    """Tiles of tokens and latents; the first fits the shared memory of every machine."""
    sizes = ((128, 128, 64, 8, 3), (128, 256, 64, 8, 3), (128, 128, 32, 4, 3), (128, 128, 64, 8, 2))
    if torch.version.hip is not None:
        sizes = ((128, 128, 64, 8, 2), (128, 128, 32, 4, 2), (256, 128, 32, 8, 2))
    return [
        Config({"BLOCK_N": n, "BLOCK_M": m, "BLOCK_D": d * 2 // itemsize, "GROUP": 8}, warps, stages)
        for n, m, d, warps, stages in sizes
    ]


def product(x: Tensor, W: Tensor, out: Tensor) -> Tensor:
    """x (N, d) times the transpose of W (M, d), of any strides, into the contiguous float32 `out` (N, M)."""
    (n, d), m = x.shape, W.shape[0]
    if out.numel() == 0:
        return out
    config = pick("gemm", f"{x.itemsize} bytes", configs(x.itemsize))
    grid = (cdiv(n, config.tiles["BLOCK_N"]) * cdiv(m, config.tiles["BLOCK_M"]),)
    exact = x.dtype != torch.float32 or torch.version.hip is not None
    precision = "ieee" if exact or torch.get_float32_matmul_precision() == "highest" else "tf32"
    _gemm[grid](x, W, out, n, m, d, *x.stride(), *W.stride(), PRECISION=precision, **config.meta)
    return out
