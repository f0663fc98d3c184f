"""`latent_topn` in Triton: the codes by latent, then a program for every latent, which keeps its list in registers.

A block of the latent's slots is merged into the list by rank: what stands at place r is the new slot that r entries
beat, or else the old entry that as many places further up as new slots went in before it. A block none of whose slots
beats the last entry, as most are once lists are full, costs its loads alone.
"""

# pyright: reportInvalidTypeForm=false, reportArgumentType=false, reportOperatorIssue=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...errors import ShapeError, describe
from .._triton import same_dtype
from .._triton.cast import wide
from .._triton.in_place import written
from .._triton.inputs import Codes, launches, next_power_of_2
from .._triton.tuning import Config, pick

MOST = 256  # entries of a list that registers hold


@triton.jit(do_not_specialize=["first_token"])
def _latent_topn(
    best_values, best_tokens, values, latent_offsets, order, rows, first_token: tl.int64, n,
    BLOCK_N: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    latent = tl.program_id(0).to(tl.int64)
    start, end = tl.load(latent_offsets + latent), tl.load(latent_offsets + latent + 1)
    if start >= end:
        return
    places = tl.arange(0, BLOCK_N)
    listed = places < n
    at = latent * n + places
    # entries beyond the list are unused ones: (-inf, -1), which anything beats
    value = tl.load(best_values + at, mask=listed, other=-float("inf"))
    token = tl.load(best_tokens + at, mask=listed, other=-1)
    for first in range(start, end, BLOCK_S):
        slots = first + tl.arange(0, BLOCK_S)
        inside = slots < end
        new = wide(tl.load(values + tl.load(order + slots, mask=inside, other=0), mask=inside, other=0.0))
        who = first_token + tl.load(rows + slots, mask=inside, other=0)
        real = (new != 0.0) & (new == new)
        old_v, old_t, new_v, new_t = value[:, None], token[:, None], new[None, :], who[None, :]
        wins = ((new_v > old_v) | ((new_v == old_v) & (new_t < old_t)) | (old_t < 0)) & real[None, :]
        wins &= listed[:, None]
        rank = n - tl.sum(wins.to(tl.int32), 0)  # old entries that stay above; slots of a block are in token order
        if tl.min(rank, 0) < n:
            below, other = tl.arange(0, BLOCK_S)[:, None], tl.arange(0, BLOCK_S)[None, :]
            new_w = new[:, None]
            above = ((new_w > new_v) | ((new_w == new_v) & (below < other))) & real[:, None]
            rank = tl.where(real, rank + tl.sum(above.to(tl.int32), 0), BLOCK_N)
            shift = tl.sum((rank[None, :] < places[:, None]).to(tl.int32), 1)
            taker = tl.max(tl.where(rank[None, :] == places[:, None], other, -1), 1)
            entrant, moved = tl.maximum(taker, 0), places - shift
            value = tl.where(taker >= 0, tl.gather(new, entrant, 0), tl.gather(value, moved, 0))
            token = tl.where(taker >= 0, tl.gather(who, entrant, 0), tl.gather(token, moved, 0))
    tl.debug_barrier()  # every thread has read its part of the list before any writes
    tl.store(best_values + at, value, mask=listed)
    tl.store(best_tokens + at, token, mask=listed)


def configs(n: int) -> list[Config]:
    """The built-in choice first: blocks of 16 slots, about what a batch holds of a latent; a warp for 32 entries."""
    block = max(16, next_power_of_2(n))
    warps = max(1, min(4, block // 32))
    return [Config({"BLOCK_N": block, "BLOCK_S": slots}, num_warps=warps) for slots in (16, 32)]


def why_not(
    best_values: Tensor,
    best_tokens: Tensor,
    values: Tensor,
    indices: Tensor,
    offsets: Tensor | None,
    first_token: int,
) -> str | None:
    """None, or why the Triton kernel declines."""
    if not (best_values.is_contiguous() and best_tokens.is_contiguous()):
        return "best_values and best_tokens are written in place (need to be contiguous)"
    if best_values.dim() == 2 and best_values.shape[1] > MOST:
        return f"{best_values.shape[1]} entries a latent (takes up to {MOST})"
    return same_dtype(values)


@launches
def run(
    best_values: Tensor,
    best_tokens: Tensor,
    values: Tensor,
    indices: Tensor,
    offsets: Tensor | None,
    first_token: int,
) -> None:
    """See `sae_kernels.kernels.latent_topn`."""
    if best_values.dim() != 2:
        raise ShapeError(f"best_values is {describe(best_values)}, expected (d_sae, n)")
    d_sae, n = best_values.shape
    best_values = written(best_values, "best_values", (d_sae, n), torch.float32)
    best_tokens = written(best_tokens, "best_tokens", (d_sae, n), torch.int64)
    codes = Codes(values, indices, offsets, d_sae, values.dtype)
    if codes.nnz == 0 or codes.n == 0 or best_values.numel() == 0:
        return
    latent_offsets, order, rows = torch.ops.sae_kernels.transpose(codes.indices, codes.offsets, d_sae, backend="triton")
    config = pick("latent_topn", f"n<={next_power_of_2(n)}", configs(n))
    _latent_topn[(d_sae,)](
        best_values, best_tokens, codes.values, latent_offsets, order, rows, first_token, n, **config.meta
    )  # fmt: skip
