"""The slots of a row, for codes with k slots in every row and for ragged ones."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def row_bounds(offsets, row, k, nnz, RAGGED: tl.constexpr):
    """The first slot of an int64 row and the one after its last; never outside [0, nnz], whatever the offsets say."""
    if RAGGED:
        start = tl.maximum(tl.load(offsets + row), 0)
        end = tl.minimum(tl.load(offsets + row + 1), nnz)
    else:
        start = row * k
        end = start + k
    return start, end
