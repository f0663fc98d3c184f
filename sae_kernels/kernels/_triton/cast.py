"""16-bit numbers to float32 and back. Every load goes through `wide`, every floating store through `narrow`.

On a GPU both are plain conversions (to the nearest, ties to even). Triton's interpreter cuts bfloat16 off instead of
rounding, and loses its denormals: there the bits are moved by hand.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import interpreting

_BY_HAND = tl.constexpr(interpreting())


@triton.jit
def wide(x):
    """float32 of what was loaded."""
    if _BY_HAND and x.dtype == tl.bfloat16:
        return (x.to(tl.uint16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        return x.to(tl.float32)


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """float32 rounded to the dtype it is stored as (`out.dtype.element_ty`)."""
    if _BY_HAND and dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        rounded = tl.where(x != x, 0x7FC0, rounded)
        return rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(dtype)
