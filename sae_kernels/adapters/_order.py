"""The order in which a source hands out its items (sequences, runs of rows, batches), and what is held out.

All of it is a function of (seed, epoch, block) alone, so that a resumed run meets the same data.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from ..errors import AdapterError
from ._checks import fraction, one_of, positive

Split = Literal["train", "heldout", "all"]


def split_range(n: int, split: Split, heldout: float) -> range:
    """Indices of a split of n items: the last `heldout` of them (at least one) are held out of training.

    Raises:
        ArgumentError: an unknown split, or a fraction outside (0, 1).
        AdapterError: fewer than two items can't be split.
    """
    one_of("split", split, ("train", "heldout", "all"))
    if split == "all":
        return range(n)
    if n < 2:
        raise AdapterError(f"split = {split!r} of {n} items, expected at least 2 (or split = 'all')")
    first = n - min(max(round(n * fraction(heldout=heldout)), 1), n - 1)
    return range(first) if split == "train" else range(first, n)


@lru_cache(maxsize=8)  # a source asks for the same epoch's order again and again
def permutation(n: int, seed: int, what: str, number: int) -> Tensor:
    """A permutation of n that belongs to (seed, what, number)."""
    digest = hashlib.blake2b(f"{seed}/{what}/{number}".encode(), digest_size=7).digest()
    return torch.randperm(n, generator=torch.Generator().manual_seed(int.from_bytes(digest, "big")))


@dataclass(frozen=True)
class BlockOrder:
    """n items in blocks of `per_block` (an epoch's last may be shorter), shuffled anew in each epoch.

    `epochs` None: they never end.
    """

    n: int
    per_block: int
    shuffle: bool = False
    seed: int = 0
    epochs: int | None = 1

    def __post_init__(self) -> None:
        positive(per_block=self.per_block, epochs=self.epochs)
        if self.n < 1:
            raise AdapterError("no activations: the source is empty")

    @property
    def blocks_per_epoch(self) -> int:
        return -(-self.n // self.per_block)

    @property
    def n_blocks(self) -> int | None:
        return None if self.epochs is None else self.epochs * self.blocks_per_epoch

    def items(self, block: int) -> Tensor:
        """Items of a block, int64.

        Raises:
            AdapterError: there is no such block.
        """
        if block < 0 or (self.n_blocks is not None and block >= self.n_blocks):
            raise AdapterError(f"block {block}: expected 0 <= block < {self.n_blocks or 'infinity'}")
        epoch, place = divmod(block, self.blocks_per_epoch)
        chosen = slice(place * self.per_block, (place + 1) * self.per_block)
        if not self.shuffle:
            return torch.arange(self.n)[chosen]
        return permutation(self.n, self.seed, "epoch", epoch)[chosen].clone()

    def rows(self, block: int, n_rows: int) -> Tensor | None:
        """The order of the n_rows rows inside a block; None where they stay as they are."""
        return permutation(n_rows, self.seed, "rows", block) if self.shuffle else None
