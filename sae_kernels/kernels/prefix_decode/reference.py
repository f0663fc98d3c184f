"""`prefix_decode` as one `spmm` a prefix."""

from __future__ import annotations

import torch
from torch import Tensor

from .._reference import always as why_not
from ..spmm import reference as spmm

__all__ = ["run", "why_not"]


def run(values: Tensor, indices: Tensor, offsets: Tensor | None, W: Tensor, prefixes: list[int]) -> Tensor:
    """See `sae_kernels.kernels.prefix_decode`."""
    inside = [torch.where(indices < prefix, values, 0) for prefix in prefixes]
    return torch.stack([spmm.run(kept, indices, offsets, W) for kept in inside])
