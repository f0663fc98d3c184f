"""`topk` in C++: block maxima bound the k-th score, then few blocks are read again. csrc/topk."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import ShapeError
from .. import _cpu


def why_not(scores: Tensor, k: int) -> str | None:
    """None, or why the C++ kernel declines."""
    return _cpu.why_not(scores)


def run(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """See `sae_kernels.kernels.topk`. Indices ascend within a row."""
    scores = _cpu.matrix(scores.detach())
    if not 0 <= k <= scores.shape[1]:  # before memory for k is asked for
        raise ShapeError(f"k = {k}, expected 0 <= k <= {scores.shape[1]}")
    values = torch.empty(scores.shape[0], k, dtype=scores.dtype)
    indices = torch.empty(values.shape, dtype=torch.int32)
    args = (*_cpu.pointers(scores), k, values.data_ptr(), indices.data_ptr())
    _cpu.call("topk", _cpu.dtype_code(scores), *args)
    return values, indices
