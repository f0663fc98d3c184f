"""Rows of a decoder: their norms, and what training does to keep them at 1."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def unit_rows(rows: Tensor) -> Tensor:
    """Rows divided by their norm; rows of norm 0 stay."""
    norms = rows.norm(dim=1, keepdim=True)
    return torch.where(norms > 0, rows / norms, rows)


@torch.no_grad()
def remove_parallel(rows: Tensor) -> None:
    """g_i ← g_i − (g_i·r̂_i) r̂_i in `rows.grad`: where rows are put back to unit norm after each step, the part of the
    gradient along a row cannot act; this takes it out of Adam's moments too."""
    if rows.grad is not None:
        directions = unit_rows(rows)
        rows.grad.addcmul_((rows.grad * directions).sum(1, keepdim=True), directions, value=-1)
