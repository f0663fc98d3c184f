"""`sddmm` as a GEMM: chunks of tokens against all of B, the codes' positions picked out.

What it does not share with the sparse kernels: see `_dense`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import ShapeError, describe
from .. import _dense
from .._reference import slot_rows
from .._triton import on_gpu
from .._triton.inputs import Codes, launches


def why_not(A: Tensor, B: Tensor, indices: Tensor, offsets: Tensor | None, gate: Tensor | None) -> str | None:
    """None, or why PyTorch's GEMM is not used."""
    return _dense.why_not((A, B, gate), (indices, offsets), B)


@launches
def run(A: Tensor, B: Tensor, indices: Tensor, offsets: Tensor | None, gate: Tensor | None) -> Tensor:
    """See `sae_kernels.kernels.sddmm`."""
    A, B = _dense.operand(A, "A"), _dense.operand(B, "B")
    if A.shape[1] != B.shape[1]:
        raise ShapeError(f"A is {describe(A)}, B is {describe(B)}: expected one width")
    m = B.shape[0]
    codes = _dense.codes(gate, indices, offsets, m, A.dtype, rows=A.shape[0])
    out = torch.empty(codes.nnz, dtype=A.dtype, device=A.device)
    if codes.nnz and m and A.shape[1]:
        (_on_gpu if on_gpu(A) else _on_cpu)(A, B, codes, out)
    else:
        out.zero_()
    return out.view(indices.shape)


def _on_gpu(A: Tensor, B: Tensor, codes: Codes, out: Tensor) -> None:
    from .._triton.densify import gather

    for row, rows in _dense.spans(codes.n, 4 * B.shape[0], B):
        gather(_dense.product(A[row : row + rows], B.mT), codes, codes.values, out, row)


def _on_cpu(A: Tensor, B: Tensor, codes: Codes, out: Tensor) -> None:
    at = codes.indices.flatten().long()
    at += slot_rows(codes.indices, codes.offsets) * B.shape[0]  # where each slot lies in the whole table
    ends = None if codes.offsets is None else codes.offsets.tolist()
    for row, rows in _dense.spans(codes.n, 4 * B.shape[0], B):
        first, last = (row * codes.k, (row + rows) * codes.k) if ends is None else (ends[row], ends[row + rows])
        scores = _dense.product(A[row : row + rows], B.mT).view(-1)
        torch.index_select(scores, 0, at[first:last] - row * B.shape[0], out=out[first:last])
    if codes.values is not None:
        out.masked_fill_(codes.values.flatten() == 0, 0.0)
