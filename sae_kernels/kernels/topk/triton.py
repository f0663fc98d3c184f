"""`topk` in Triton: groups of a row are ranked by their maxima, and only the k best groups are read again.

Why that is exact, and how a choice is made: `_triton/select.py`. The scores are read once, at the speed of memory; all
that follows reads a small share of them. Scratch: 4 bytes for each group of g ≈ √(M/k) scores, at most 128 MiB.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import ShapeError, describe
from .._triton import same_dtype
from .._triton.inputs import launches, plain
from .._triton.select import best_of_rows


def why_not(scores: Tensor, k: int) -> str | None:
    """None, or why the Triton kernel declines."""
    return same_dtype(scores)


@launches
def run(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """See `sae_kernels.kernels.topk`. Indices ascend within a row."""
    if scores.dim() != 2 or not 0 <= k <= scores.shape[1]:
        raise ShapeError(f"scores are {describe(scores)}, k = {k}: expected (N, M) and 0 <= k <= M")
    values = torch.empty(scores.shape[0], k, dtype=scores.dtype, device=scores.device)
    indices = torch.empty(values.shape, dtype=torch.int32, device=scores.device)
    best_of_rows(plain(scores), k, values, indices)
    return values, indices
