"""`prefix_decode` in Triton: `spmm` with one sum for every prefix, so that a row of W is read once for all of them.

A program keeps the sums of up to GROUP prefixes; more are split over programs, each of which reads the rows that its
largest prefix holds.
"""

# pyright: reportInvalidTypeForm=false, reportArgumentType=false
from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...errors import ShapeError
from .._triton import same_dtype
from .._triton.cast import narrow, wide
from .._triton.inputs import Codes, cdiv, launches, matrix, next_power_of_2
from .._triton.rows import row_bounds
from .._triton.tuning import Config, pick

GROUP = 8


@triton.jit(do_not_specialize=["nnz", "n"])
def _prefix_decode(
    values, indices, offsets, W, prefixes, out, n: tl.int64, k, nnz: tl.int64, count, d_sae, d, W_stride,
    RAGGED: tl.constexpr, PREFIXES: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < d
    group = tl.program_id(2) * PREFIXES + tl.arange(0, PREFIXES)
    prefix = tl.load(prefixes + group, mask=group < count, other=0)
    last = tl.max(prefix, 0)
    start, end = row_bounds(offsets, row, k, nnz, RAGGED)
    sums = tl.zeros((PREFIXES, BLOCK_D), tl.float32)
    for first in range(start, end, BLOCK_K):
        slots = first + tl.arange(0, BLOCK_K)
        value = wide(tl.load(values + slots, mask=slots < end, other=0.0))
        latent = tl.load(indices + slots, mask=slots < end, other=0)
        legal = (latent >= 0) & (latent < d_sae)
        used = legal & (latent < last) & (value != 0.0)
        rows = W + latent.to(tl.int64)[:, None] * W_stride + columns[None, :]
        weights = wide(tl.load(rows, mask=used[:, None] & inside[None, :], other=0.0))
        terms = tl.where(legal, value, float("nan"))[:, None] * weights
        terms = tl.reshape(terms, (1, BLOCK_K, BLOCK_D))  # [None] would move them through shared memory
        held = (latent[None, :] < prefix[:, None]) | ~legal[None, :]
        # chosen, not multiplied by 0: a prefix without this latent sees no inf or NaN of its row
        sums += tl.sum(tl.where(held[:, :, None], terms, 0.0), 1)
    at = out + (group.to(tl.int64) * n + row)[:, None] * d + columns[None, :]
    tl.store(at, narrow(sums, out.dtype.element_ty), mask=(group < count)[:, None] & inside[None, :])


@functools.lru_cache(maxsize=256)
def _on_device(prefixes: tuple[int, ...], device: torch.device) -> Tensor:
    """Kept from call to call: copying a list to a GPU makes the host wait."""
    return torch.tensor(prefixes, dtype=torch.int32, device=device)


def _check(prefixes: list[int], d_sae: int) -> None:
    before = -1
    for p, prefix in enumerate(prefixes):
        if not before < prefix <= d_sae or prefix < 0:
            raise ShapeError(f"prefixes[{p}] = {prefix}: they must rise strictly, up to at most {d_sae}")
        before = prefix


def configs(count: int, d: int, itemsize: int, aligned: bool) -> list[Config]:
    """The built-in choice first: 16-byte loads by every lane of a warp, if rows are aligned; blocks small beside the
    sums."""
    widest = 512 // itemsize if aligned else 128
    tiles = [(widest, 4, 1), (widest // 2, 8, 1), (2 * widest, 4, 2)]
    if count <= GROUP // 2:
        tiles.append((widest, 8, 1))  # with more sums its registers spill
    choices = [
        Config({"BLOCK_D": max(16, min(width, next_power_of_2(d))), "BLOCK_K": slots}, num_warps=warps)
        for width, slots, warps in tiles
    ]
    return list(dict.fromkeys(choices))


def size_class(count: int, d: int, itemsize: int, aligned: bool) -> str:
    """What the best configuration depends on."""
    reads = f"{itemsize} bytes{'' if aligned else ' unaligned'}"
    return f"{reads}, {min(GROUP, next_power_of_2(count))} prefixes, d<={next_power_of_2(d)}"


def why_not(values: Tensor, indices: Tensor, offsets: Tensor | None, W: Tensor, prefixes: list[int]) -> str | None:
    """None, or why the Triton kernel declines."""
    return same_dtype(values, W)


@launches
def run(values: Tensor, indices: Tensor, offsets: Tensor | None, W: Tensor, prefixes: list[int]) -> Tensor:
    """See `sae_kernels.kernels.prefix_decode`."""
    W = matrix(W, "W")
    d_sae, d = W.shape
    _check(prefixes, d_sae)
    codes = Codes(values, indices, offsets, d_sae, W.dtype)
    count = len(prefixes)
    out = torch.empty(count, codes.n, d, dtype=W.dtype, device=W.device)
    if out.numel() == 0:
        return out
    kind = count, d, W.itemsize, d % 16 == 0 and W.stride(0) % 16 == 0
    config = pick("prefix_decode", size_class(*kind), configs(*kind))
    together = min(GROUP, next_power_of_2(count))
    grid = (codes.n, cdiv(d, config.tiles["BLOCK_D"]), cdiv(count, together))
    _prefix_decode[grid](
        codes.values, codes.indices, codes.offsets, W, _on_device(tuple(prefixes), W.device), out, codes.n, codes.k,
        codes.nnz, count, d_sae, d, W.stride(0), RAGGED=codes.offsets is not None, PREFIXES=together, **config.meta,
    )  # fmt: skip
    return out
