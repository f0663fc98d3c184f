"""A dense table of codes on the CPU, with torch's own scatters: each row's slots in order, by one thread."""

from __future__ import annotations

import torch
from torch import Tensor

from .._triton.inputs import Codes


class HostTable:
    """See `Table`. Sums are kept in float32, and rounded into a second scratch where the product is in 16 bits."""

    def __init__(self, codes: Codes, dtype: torch.dtype, window: int) -> None:
        self._codes = codes
        self._ends = None if codes.offsets is None else codes.offsets.tolist()
        self._sums = torch.zeros(window, dtype=torch.float32, device="cpu")
        self._rounded = self._sums if dtype == torch.float32 else torch.empty(window, dtype=dtype, device="cpu")
        self._written: tuple[Tensor, Tensor] | None = None  # (window of the sums, where codes were added)

    def fill(self, row: int, rows: int, latent: int, cols: int) -> Tensor:
        """See `Table`."""
        sums = self._sums[: rows * cols].view(rows, cols)
        values, places = self._slots(row, rows)
        where = places - latent
        outside = (where < 0) | (where >= cols)
        values = values.float().masked_fill(outside, 0.0)
        where = where.clamp_(0, cols - 1)
        offsets = self._codes.offsets
        if offsets is None:
            self._written = sums, where
            sums.scatter_add_(1, where, values)
        else:
            lengths = offsets[row : row + rows + 1].diff()
            where += torch.repeat_interleave(torch.arange(rows, device="cpu"), lengths) * cols
            self._written = sums.view(-1), where
            sums.view(-1).scatter_add_(0, where, values)
        if self._rounded is self._sums:
            return sums
        return self._rounded[: rows * cols].view(rows, cols).copy_(sums)

    def clear(self) -> None:
        """See `Table`."""
        assert self._written is not None
        sums, where = self._written
        sums.scatter_(sums.dim() - 1, where, 0.0)

    def _slots(self, row: int, rows: int) -> tuple[Tensor, Tensor]:
        """Values and latents (int64) of the slots of these rows."""
        values = self._codes.values
        assert values is not None
        first, last = (row, row + rows) if self._ends is None else (self._ends[row], self._ends[row + rows])
        return values[first:last], self._codes.indices[first:last].long()
