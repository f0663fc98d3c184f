"""`linear_threshold` with the dense pre-acts in sight."""

from __future__ import annotations

import torch
from torch import Tensor

from .._reference import always as why_not
from .._reference import pre_acts

__all__ = ["run", "to_csr", "why_not"]


def to_csr(z: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The kept entries of z (N, M) as (values, indices, offsets)."""
    rows, cols = keep.nonzero(as_tuple=True)
    offsets = torch.zeros(z.shape[0] + 1, dtype=torch.int64, device=z.device)
    offsets[1:] = keep.sum(1).cumsum(0)
    return z[rows, cols], cols.int(), offsets


def run(x: Tensor, W: Tensor, b: Tensor | None, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `sae_kernels.kernels.linear_threshold`."""
    z = pre_acts(x, W, b)
    values, indices, offsets = to_csr(z, ~(z <= theta))
    return values.to(x.dtype), indices, offsets
