"""Batches: equal sizes across blocks of any length, and the same ones from any position."""

from __future__ import annotations

import pytest
import torch

from sae_kernels.adapters import ActivationBatch
from sae_kernels.errors import AdapterError
from sae_kernels.train.batches import Batches, Position


class Counting:
    """Rows numbered in order of the blocks; n_blocks is finite, or None to repeat the lengths for ever."""

    d_in = d_out = 1

    def __init__(self, *lengths: int, endless: bool = False, target: bool = False) -> None:
        self.lengths, self.target = lengths, target
        self.n_blocks = None if endless else len(lengths)
        self.read: list[int] = []

    def block(self, index: int) -> ActivationBatch:
        self.read.append(index)
        epoch, place = divmod(index, len(self.lengths))
        first = epoch * sum(self.lengths) + sum(self.lengths[:place])
        rows = torch.arange(first, first + self.lengths[place]).float()[:, None]
        return ActivationBatch(rows, -rows if self.target else rows)


def taken(batches: Batches, n: int) -> list[list[int]]:
    return [batches.next()[0][:, 0].int().tolist() for _ in range(n)]


def test_blocks_are_joined_and_cut() -> None:
    source = Counting(3, 0, 1, 5)
    assert taken(Batches(source, 4), 2) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert source.read == [0, 1, 2, 3]  # each once


def test_a_finite_source_starts_over() -> None:
    assert taken(Batches(Counting(2, 3), 4), 3) == [[0, 1, 2, 3], [4, 0, 1, 2], [3, 4, 0, 1]]


def test_an_endless_source_goes_on() -> None:
    source = Counting(2, 3, endless=True)
    assert taken(Batches(source, 4), 3) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert source.read[-1] == 4


@pytest.mark.parametrize("size", [1, 3, 4, 7, 20])
def test_the_position_is_all_that_a_resumed_stream_needs(size: int) -> None:
    batches = Batches(Counting(3, 0, 5, 2), size)
    positions = []
    expected = []
    for _ in range(12):
        positions.append(batches.position)
        expected += taken(batches, 1)
    for i, position in enumerate(positions):
        assert taken(Batches(Counting(3, 0, 5, 2), size, position), 12 - i) == expected[i:]


def test_targets_follow_inputs() -> None:
    x, y = Batches(Counting(3, 5, target=True), 4).next()
    assert torch.equal(y, -x)
    x, y = Batches(Counting(3, 5), 4).next()
    assert x is y


@pytest.mark.parametrize("source", [Counting(), Counting(0, 0), Counting(0, endless=True)])
def test_no_rows_at_all(source: Counting) -> None:
    with pytest.raises(AdapterError, match="no activations"):
        Batches(source, 2).next()


def test_a_batch_may_end_at_the_end_of_a_block() -> None:
    batches = Batches(Counting(4, 4), 4)
    batches.next()
    assert batches.position == Position(1, 0)
