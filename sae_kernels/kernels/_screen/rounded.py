"""Rows rounded to bfloat16, with the norms that bound what rounding cost."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import _cpu


class Rounded(NamedTuple):
    """Rows in bfloat16, their norms, and the norms of what rounding dropped."""

    data: Tensor
    norm: Tensor
    dropped: Tensor

    @staticmethod
    def empty(rows: int, d: int, dtype: torch.dtype) -> Rounded:
        """Room for the rows of a matrix of `dtype`; bfloat16 ones stay where they are."""
        own = 0 if dtype == torch.bfloat16 else rows
        return Rounded(_cpu.empty(own, d, dtype=torch.bfloat16), torch.empty(rows), torch.empty(rows))

    def part(self, first: int, rows: int) -> Rounded:
        """Some of the rows."""
        end = first + rows
        return Rounded(self.data[first:end], self.norm[first:end], self.dropped[first:end])

    def norms(self) -> tuple[int, int]:
        """Addresses."""
        return self.norm.data_ptr(), self.dropped.data_ptr()

    @property
    def nbytes(self) -> int:
        """Size in memory."""
        return self.data.nbytes + self.norm.nbytes + self.dropped.nbytes


def round_rows(a: Tensor, room: Rounded) -> Rounded:
    """The rows of `a` (rows in one piece), rounded into `room`."""
    rows = a.shape[0]
    in_place = a.dtype == torch.bfloat16
    out = Rounded(a if in_place else room.data[:rows], room.norm[:rows], room.dropped[:rows])
    target = 0 if in_place else out.data.data_ptr()
    _cpu.call("screen_round", _cpu.dtype_code(a), *_cpu.pointers(a), target, *out.norms())
    return out
