"""The arguments of `linear_topk`, under one name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor


class Problem(NamedTuple):
    """As listed in `sae_kernels.kernels.linear_topk`."""

    x: Tensor
    W: Tensor
    b: Tensor | None
    ks: list[int]
    relus: list[bool]
    among: Sequence[Tensor | None]

    def selections(self) -> Iterator[tuple[int, bool, Tensor | None]]:
        """k, relu and mask of each."""
        return zip(self.ks, self.relus, self.among, strict=True)

    def each(self) -> Iterator[Problem]:
        """Those of one selection."""
        for k, relu, mask in self.selections():
            yield self._replace(ks=[k], relus=[relu], among=[mask])

    def of(self, x: Tensor) -> Problem:
        """The same of other tokens."""
        return self._replace(x=x)

    def bias(self) -> Tensor | None:
        """b as C++ takes it."""
        return None if self.b is None else self.b.detach().float().contiguous()
