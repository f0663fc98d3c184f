"""`topk` by a stable sort, which is what the order means: NaN, then descending, ties to the smaller index."""

from __future__ import annotations

import torch
from torch import Tensor

from .._reference import always as why_not

__all__ = ["run", "why_not"]


def run(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(N, M) scores, k ≤ M → values (N, k), indices (N, k) int32."""
    ordered = torch.sort(scores, dim=1, descending=True, stable=True)
    return ordered.values[:, :k].contiguous(), ordered.indices[:, :k].int()
