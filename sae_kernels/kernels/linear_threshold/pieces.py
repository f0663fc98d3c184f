"""Ragged codes from pieces: what stays of each chunk of pre-acts, put together as one CSR."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import _cpu
from .._pre_acts import address


class Piece(NamedTuple):
    """A chunk's entries: those of its row r are `counts[r]` from `starts[r]` on."""

    row: int  # of the chunk's first
    counts: Tensor
    starts: Tensor
    values: Tensor
    indices: Tensor


def starts_of(counts: Tensor) -> Tensor:
    """Where each row begins, one after the other."""
    return counts.cumsum(0) - counts


def assemble(n: int, pieces: list[Piece], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """One CSR from pieces in which latents ascend; frees each piece as it is taken in."""
    offsets = torch.zeros(n + 1, dtype=torch.int64)
    for piece in pieces:
        offsets[piece.row + 1 : piece.row + 1 + piece.counts.numel()] += piece.counts
    offsets.cumsum_(0)
    cursor = offsets[:-1].clone()
    nnz = int(offsets[-1])
    values, indices = torch.empty(nnz, dtype=dtype), torch.empty(nnz, dtype=torch.int32)
    pieces.reverse()
    while pieces:
        row, counts, starts, piece_values, piece_indices = pieces.pop()
        to = cursor[row : row + counts.numel()]
        tensors = (counts, starts, piece_values, piece_indices, to, values, indices)
        _cpu.call("place_rows", _cpu.DTYPES[dtype], counts.numel(), *map(address, tensors))
        to += counts
    return values, indices, offsets
