"""`linear_threshold` on the CPU: `torch.mm` on chunks; C++ counts what stays in each, then writes it.

Bodies: csrc/select. Memory: the outputs twice over while chunks are put together, and that of `_pre_acts`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _cpu
from .._pre_acts import PreActs, address, bias_of, check

# (first row, entries of each row, values, indices) of one chunk, row after row
_Piece = tuple[int, Tensor, Tensor, Tensor]


def _starts(counts: Tensor) -> Tensor:
    return counts.cumsum(0) - counts


def _piece(row: int, scores: Tensor, bias: Tensor | None, theta: Tensor, first: int, dtype: torch.dtype) -> _Piece:
    """What stays of a chunk."""
    counts = torch.empty(scores.shape[0], dtype=torch.int64)
    step = theta.dim()  # 0-d: one for all latents
    chunk = (*_cpu.pointers(scores), address(bias), address(theta) + 4 * step * first, step)
    _cpu.call("threshold_count", *chunk, counts.data_ptr())
    starts, nnz = _starts(counts), int(counts.sum())
    values, indices = torch.empty(nnz, dtype=dtype), torch.empty(nnz, dtype=torch.int32)
    out = (starts.data_ptr(), values.data_ptr(), indices.data_ptr())
    _cpu.call("threshold_fill", _cpu.DTYPES[dtype], *chunk, first, *out)
    return row, counts, values, indices


def _assemble(n: int, pieces: list[_Piece], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """One CSR from pieces in which latents ascend; frees each piece as it is taken in."""
    offsets = torch.zeros(n + 1, dtype=torch.int64)
    for row, counts, _, _ in pieces:
        offsets[row + 1 : row + 1 + counts.numel()] += counts
    offsets.cumsum_(0)
    cursor = offsets[:-1].clone()
    nnz = int(offsets[-1])
    values, indices = torch.empty(nnz, dtype=dtype), torch.empty(nnz, dtype=torch.int32)
    pieces.reverse()
    while pieces:
        row, counts, piece_values, piece_indices = pieces.pop()
        starts, to = _starts(counts), cursor[row : row + counts.numel()]
        tensors = (counts, starts, piece_values, piece_indices, to, values, indices)
        _cpu.call("place_rows", _cpu.DTYPES[dtype], counts.numel(), *map(address, tensors))
        to += counts
    return values, indices, offsets


def why_not(x: Tensor, W: Tensor, b: Tensor | None, theta: Tensor) -> str | None:
    """None, or why the C++ kernel declines."""
    return _cpu.why_not(x, W, b) or _cpu.why_not(theta)


def run(x: Tensor, W: Tensor, b: Tensor | None, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `sae_kernels.kernels.linear_threshold`."""
    check(x, W, b, theta=theta if theta.dim() else None)
    theta = theta.detach().float().contiguous()
    chunks = PreActs(x, W)
    pieces = [
        _piece(row, scores, bias_of(b, first, scores.shape[1]), theta, first, x.dtype)
        for row, rows in chunks.tokens()
        for first, scores in chunks.scores(row, rows)
    ]
    return _assemble(x.shape[0], pieces, x.dtype)
