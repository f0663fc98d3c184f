"""`topk` in C++: block maxima bound the k-th score, then few blocks are read again. csrc/topk."""

from __future__ import annotations

from torch import Tensor

from ...errors import ShapeError
from .. import _cpu


def why_not(scores: Tensor, k: int) -> str | None:
    """None, or why the C++ kernel declines."""
    return _cpu.why_not(scores)


def run(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """See `sae_kernels.kernels.topk`. Indices ascend within a row."""
    scores = _cpu.matrix(scores)
    address, n, m, stride = _cpu.pointers(scores)
    if not 0 <= k <= m:  # before memory for k is asked for
        raise ShapeError(f"k = {k}, expected 0 <= k <= {m}")
    values, indices = scores.new_empty(n, k), _cpu.INT32.new_empty(n, k)
    out = values.data_ptr(), indices.data_ptr()
    _cpu.call("topk", _cpu.dtype_code(scores), address, n, m, stride, k, *out)
    return values, indices
