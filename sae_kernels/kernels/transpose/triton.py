"""`transpose` in Triton: torch's stable radix sort of the indices, then one kernel of binary searches.

`latent_offsets[m]` is the place of the first sorted index ≥ m, so that indices outside [0, d_sae) lie before the first
latent or after the last, where no latent's slots are. The row of a slot is `slot // k`, or the last row of ragged codes
that starts at or before it.
"""

# pyright: reportInvalidTypeForm=false, reportArgumentType=false

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...errors import ShapeError
from .._triton.inputs import Codes, cdiv, launches
from .._triton.tuning import Config, pick


@dataclass(frozen=True)
class ByLatent:
    """Codes by latent: `keys` int32 is the latent of each slot, ascending; the others are what the op returns."""

    keys: Tensor
    latent_offsets: Tensor
    order: Tensor
    rows: Tensor


@triton.jit(do_not_specialize=["nnz", "n", "latent_steps", "row_steps"])
def _index(
    keys, order, offsets, latent_offsets, rows, nnz: tl.int64, n: tl.int64, k, d_sae, latent_steps, row_steps,
    RAGGED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * BLOCK
    here = first + tl.arange(0, BLOCK)
    if first <= d_sae:  # latents: the first key that is not smaller
        low = tl.zeros((BLOCK,), tl.int64)
        high = low + nnz
        for _ in range(latent_steps):
            middle = (low + high) >> 1
            open_ = low < high
            smaller = open_ & (tl.load(keys + middle, mask=open_, other=0) < here)
            high = tl.where(open_ & (smaller == 0), middle, high)
            low = tl.where(smaller, middle + 1, low)
        tl.store(latent_offsets + here, low, mask=here <= d_sae)
    if first < nnz:  # slots: the row of each
        slot = tl.load(order + here, mask=here < nnz, other=0)
        if RAGGED:  # one before the first offset that is greater
            low = tl.zeros((BLOCK,), tl.int64)
            high = low + n + 1
            for _ in range(row_steps):
                middle = (low + high) >> 1
                open_ = low < high
                reached = open_ & (tl.load(offsets + middle, mask=open_, other=0) <= slot)
                high = tl.where(open_ & (reached == 0), middle, high)
                low = tl.where(reached, middle + 1, low)
            row = tl.maximum(tl.minimum(low, n) - 1, 0)
        else:
            row = slot // k
        tl.store(rows + here, row.to(tl.int32), mask=here < nnz)


CONFIGS = [Config({"BLOCK": 256}, num_warps=2), Config({"BLOCK": 1024})]


def by_latent(codes: Codes) -> ByLatent:
    """Sort checked codes."""
    if codes.d_sae < 0:
        raise ShapeError(f"d_sae is {codes.d_sae}, expected at least 0")
    device = codes.indices.device
    keys, order = torch.sort(codes.indices.flatten(), stable=True)
    latent_offsets = torch.empty(codes.d_sae + 1, dtype=torch.int64, device=device)
    rows = torch.empty(codes.nnz, dtype=torch.int32, device=device)
    config = pick("transpose", "any", CONFIGS)
    _index[(cdiv(max(codes.d_sae + 1, codes.nnz), config.tiles["BLOCK"]),)](
        keys, order, codes.offsets, latent_offsets, rows, codes.nnz, codes.n, codes.k, codes.d_sae,
        codes.nnz.bit_length(), (codes.n + 1).bit_length(), RAGGED=codes.offsets is not None, **config.meta,
    )  # fmt: skip
    return ByLatent(keys, latent_offsets, order, rows)


def why_not(indices: Tensor, offsets: Tensor | None, d_sae: int) -> str | None:
    """None: the Triton kernel runs wherever Triton does."""


@launches
def run(indices: Tensor, offsets: Tensor | None, d_sae: int) -> tuple[Tensor, Tensor, Tensor]:
    """See `sae_kernels.kernels.transpose`."""
    sorted_ = by_latent(Codes(None, indices, offsets, d_sae))
    return sorted_.latent_offsets, sorted_.order, sorted_.rows
