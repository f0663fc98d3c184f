"""`spmm_t` as a GEMM: chunks of latents, so that each sum is finished in one product.

What it does not share with the sparse kernels: see `_dense`.
"""

from __future__ import annotations

from torch import Tensor

from ...errors import ShapeError
from .. import _dense
from .._triton.inputs import launches


def why_not(values: Tensor, indices: Tensor, offsets: Tensor | None, X: Tensor, d_sae: int) -> str | None:
    """None, or why PyTorch's GEMM is not used."""
    return _dense.why_not((values, X), (indices, offsets), X)


@launches
def run(values: Tensor, indices: Tensor, offsets: Tensor | None, X: Tensor, d_sae: int) -> Tensor:
    """See `sae_kernels.kernels.spmm_t`."""
    X = _dense.operand(X, "X")
    n, d = X.shape
    if d_sae < 0:
        raise ShapeError(f"d_sae = {d_sae}, expected at least 0")
    codes = _dense.codes(values, indices, offsets, d_sae, X.dtype, rows=n)
    out = X.new_empty(d_sae, d)
    if out.numel() == 0 or n == 0:
        return out.zero_()
    steps = list(_dense.spans(d_sae, n * X.itemsize, out))
    table = _dense.table(codes, X.dtype, n * max(cols for _, cols in steps), drop=True)
    for latent, cols in steps:
        _dense.product(table.fill(0, n, latent, cols).mT, X, out[latent : latent + cols])
        table.clear()
    return out
