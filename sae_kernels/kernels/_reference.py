"""What the reference kernels share: the accumulation dtype, the row of each slot, index checks."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import IndexRangeError, describe


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 stays, everything else is computed in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def pre_acts(x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    """z = x Wᵀ + b in the accumulation dtype: dense (N, M), which is what makes this a reference."""
    acc = accumulation_dtype(x.dtype)
    z = x.to(acc) @ W.to(acc).mT
    return z if b is None else z + b.to(acc)


def check_indices(indices: Tensor, d_sae: int) -> None:
    """Refuse indices outside [0, d_sae), naming the first."""
    last = min(d_sae - 1, 2**31 - 1)  # a number that int32 cannot hold would wrap around in the comparison
    bad = ((indices < 0) | (indices > last)).nonzero()
    if bad.numel():
        at = tuple(bad[0].tolist())
        raise IndexRangeError(f"indices{list(at)} = {int(indices[at])}, expected 0 <= index < {d_sae}")


def check_offsets(offsets: Tensor, nnz: int) -> None:
    """Refuse offsets that don't rise from 0 to nnz."""
    if offsets.numel() == 0 or int(offsets[0]) != 0 or int(offsets[-1]) != nnz or bool((offsets.diff() < 0).any()):
        raise IndexRangeError(f"offsets {describe(offsets)} must rise from 0 to nnz = {nnz}")


def slot_rows(indices: Tensor, offsets: Tensor | None) -> Tensor:
    """The row of each slot, int64, flat."""
    if offsets is None:
        n, k = indices.shape
        return torch.arange(n, device=indices.device).repeat_interleave(k)
    check_offsets(offsets, indices.numel())
    lengths = offsets.diff()
    return torch.repeat_interleave(torch.arange(lengths.numel(), device=indices.device), lengths)


def active_slots(values: Tensor, indices: Tensor, offsets: Tensor | None, d_sae: int) -> tuple[Tensor, Tensor, Tensor]:
    """(values, latents, rows) of the slots that are not empty, flat, indices checked."""
    check_indices(indices, d_sae)
    rows = slot_rows(indices, offsets)
    active = values.flatten() != 0
    return values.flatten()[active], indices.flatten()[active].long(), rows[active]


def n_rows(indices: Tensor, offsets: Tensor | None) -> int:
    """N."""
    return indices.shape[0] if offsets is None else offsets.numel() - 1


def always(*_: object) -> None:
    """The reference's `why_not`: it runs anywhere."""
