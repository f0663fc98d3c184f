"""`spmm` as a GEMM: chunks of tokens, their codes written out densely.

What it does not share with the sparse kernels: see `_dense`.
"""

from __future__ import annotations

from torch import Tensor

from .. import _dense
from .._triton.inputs import launches


def why_not(values: Tensor, indices: Tensor, offsets: Tensor | None, W: Tensor) -> str | None:
    """None, or why PyTorch's GEMM is not used."""
    return _dense.why_not((values, W), (indices, offsets), W)


@launches
def run(values: Tensor, indices: Tensor, offsets: Tensor | None, W: Tensor) -> Tensor:
    """See `sae_kernels.kernels.spmm`."""
    W = _dense.operand(W, "W")
    m, d = W.shape
    codes = _dense.codes(values, indices, offsets, m, W.dtype)
    out = W.new_empty(codes.n, d)
    if out.numel() == 0 or m == 0:
        return out.zero_()
    steps = list(_dense.spans(codes.n, m * W.itemsize, W))
    table = _dense.table(codes, W.dtype, max(rows for _, rows in steps) * m, drop=False)
    for row, rows in steps:
        _dense.product(table.fill(row, rows, 0, m), W, out[row : row + rows])
        table.clear()
    return out
