"""`prefix_decode` as one `spmm` a prefix."""

from __future__ import annotations

import torch
from torch import Tensor

from .._reference import always as why_not
from .._reference import n_rows
from ..spmm import reference as spmm

__all__ = ["run", "why_not"]


def run(values: Tensor, indices: Tensor, offsets: Tensor | None, W: Tensor, prefixes: list[int]) -> Tensor:
    """See `sae_kernels.kernels.prefix_decode`."""
    inside = [torch.where(indices < prefix, values, 0) for prefix in prefixes]
    if not prefixes:
        return W.new_empty(0, n_rows(indices, offsets), W.shape[1])
    return torch.stack([spmm.run(kept, indices, offsets, W) for kept in inside])
