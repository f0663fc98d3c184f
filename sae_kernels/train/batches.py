"""Batches of equal size, cut from the blocks of an activation source."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..adapters import ActivationBatch, ActivationSource
from ..errors import AdapterError

_MOST_EMPTY_BLOCKS = 1000  # in a row, before a source without end is given up


class Position(NamedTuple):
    """Where the next batch begins. `block` counts on when the source starts over: epoch · n_blocks +
    block."""

    block: int = 0
    row: int = 0


class Batches:
    """Endless batches of `size` rows, a function of (source, size, position) alone.

    Blocks follow one another and a batch may span several; after the last block comes the first again. Rows
    come in the order in which the source has them: a source that shuffles mixes the rows inside a block, so a
    batch is a fair sample of size / (rows of a block) of one block, and blocks much larger than a batch mix
    well.
    """

    def __init__(self, source: ActivationSource, size: int, position: Position | None = None) -> None:
        self.source, self.size = source, size
        self.position = position or Position()
        self._index, self._block = -1, None

    def next(self) -> tuple[Tensor, Tensor]:
        """(input (size, d_in), target (size, d_out)) of the next rows; one tensor twice where the source says
        so.

        Raises:
            AdapterError: no block has a row.
        """
        inputs: list[Tensor] = []
        targets: list[Tensor] = []
        same, wanted, empty = True, self.size, 0
        while wanted:
            index, row = self.position
            block = self._read(index)
            rows = slice(row, min(row + wanted, len(block)))
            inputs.append(block.input[rows])
            targets.append(block.target[rows])
            same = same and block.target is block.input
            wanted -= len(inputs[-1])
            done = rows.stop >= len(block)
            self.position = Position(index + 1, 0) if done else Position(index, rows.stop)
            empty = 0 if len(block) else empty + 1
            if empty >= (self.source.n_blocks or _MOST_EMPTY_BLOCKS):
                raise AdapterError(f"no activations: {empty} blocks in a row have no rows")
        input = _joined(inputs)
        return input, input if same else _joined(targets)

    def _read(self, index: int) -> ActivationBatch:
        if self._block is None or self._index != index:
            n_blocks = self.source.n_blocks
            if n_blocks == 0:
                raise AdapterError("no activations: the source has no blocks")
            self._block = None  # freed before the next is made
            self._block = self.source.block(index % n_blocks if n_blocks else index)
            if not isinstance(self._block, ActivationBatch):
                kind, source = type(self._block).__name__, type(self.source).__name__
                raise AdapterError(f"{source}.block({index}) returned a {kind}, expected an ActivationBatch")
            self._index = index
        return self._block


def _joined(parts: list[Tensor]) -> Tensor:
    parts = [part for part in parts if len(part)] or parts[:1]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
