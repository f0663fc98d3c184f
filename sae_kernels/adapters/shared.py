"""Several readers of one source: what they have in common is computed once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .base import ActivationBatch, ActivationSource
from .hook_points import HookPoint, listed

Points = str | Sequence[str]


class SharedBlocks:
    """A source whose newest two blocks are kept, for several that ask for the same ones in turn: whoever asks first
    computes. An `ActivationSource` itself; what else the source has is there too."""

    def __init__(self, source: ActivationSource) -> None:
        self.source = source
        self.d_in, self.d_out, self.n_blocks = source.d_in, source.d_out, source.n_blocks
        self._kept: dict[int, ActivationBatch] = {}

    def block(self, index: int) -> ActivationBatch:
        """As the source's. Two are kept, since a batch may end in the block after the one in which others still are."""
        if index not in self._kept:
            while len(self._kept) > 1:
                del self._kept[next(iter(self._kept))]
            self._kept[index] = self.source.block(index)
        return self._kept[index]

    def __getattr__(self, name: str) -> Any:
        if name == "source":  # not there yet: while copied or unpickled
            raise AttributeError(name)
        return getattr(self.source, name)


class SharedPoints:
    """One source of many hook points side by side, cut into what each of several readers would have opened for itself:
    `view(hook_in, hook_out)`. The language model runs once a block for all of them, bit for bit as it would for one.

    `source`: opened with `union(pairs)` as its `hook_in` and no `hook_out`; it says in `widths` how many features each
    point has (of several models: all points of the first, then of the second).
    """

    def __init__(self, source: Any, points: Sequence[str]) -> None:
        self._source, self._views = source, {}
        ends = [0, *itertools.accumulate(source.widths)]
        parts = list(itertools.pairwise(ends))
        self._columns = {
            HookPoint.parse(point): [parts[i] for i in range(number, len(parts), len(points))]
            for number, point in enumerate(points)
        }
        self._kept: dict[int, dict[Any, ActivationBatch]] = {}

    def view(self, hook_in: Points, hook_out: Points | None) -> PointsView:
        """The source of these hook points alone."""
        given = PointsView(
            self, self._source, self._parts(hook_in), self._parts(hook_in if hook_out is None else hook_out)
        )
        given.hook_in, given.hook_out = hook_in, hook_in if hook_out is None else hook_out
        self._views[given.key] = given
        return given

    def block(self, index: int, key: Any) -> ActivationBatch:
        """A view's block; those of all views are cut at once, and two blocks of each are kept."""
        if key not in self._kept.get(index, {}):
            self._kept.pop(index, None)
            while len(self._kept) > 1:
                del self._kept[next(iter(self._kept))]
            wide = self._source.block(index)
            self._kept[index] = {each: _cut(wide, *each) for each in self._views}
        return self._kept[index][key]

    def _parts(self, points: Points) -> tuple[tuple[int, int], ...]:
        """Columns of some points, in the order in which they would stand if they were alone."""
        columns = [self._columns[HookPoint.parse(point)] for point in listed("hook_in", points)]
        return tuple(part for of_model in zip(*columns, strict=True) for part in of_model)


class PointsView:
    """An `ActivationSource`: some of the hook points of a `SharedPoints`. What else the source has is there too."""

    hook_in: Points
    hook_out: Points

    def __init__(
        self, shared: SharedPoints, source: Any, input: tuple[tuple[int, int], ...], target: tuple[tuple[int, int], ...]
    ) -> None:
        self._shared, self.source, self.key = shared, source, (input, target)
        self.d_in, self.d_out = (sum(b - a for a, b in side) for side in self.key)
        self.n_blocks = source.n_blocks

    def block(self, index: int) -> ActivationBatch:
        """Block `index` of these hook points."""
        return self._shared.block(index, self.key)

    def __getattr__(self, name: str) -> Any:
        if name == "source":  # not there yet: while copied or unpickled
            raise AttributeError(name)
        return getattr(self.source, name)


def union(pairs: Sequence[tuple[Points, Points | None]]) -> list[str]:
    """All hook points of several (hook_in, hook_out), each once."""
    named = [
        point
        for hook_in, hook_out in pairs
        for name, side in (("hook_in", hook_in), ("hook_out", hook_out))
        if side is not None
        for point in listed(name, side)
    ]
    return list({HookPoint.parse(point): point for point in reversed(named)}.values())[::-1]


def _cut(
    wide: ActivationBatch, input: tuple[tuple[int, int], ...], target: tuple[tuple[int, int], ...]
) -> ActivationBatch:
    x = _columns(wide.input, input)
    y = x if target == input else _columns(wide.input, target)
    return ActivationBatch(x, y, wide.ids, wide.sequence, wide.position)


def _columns(x: Tensor, parts: tuple[tuple[int, int], ...]) -> Tensor:
    """Copied, so that the wide tensor can go."""
    out = x.new_empty(len(x), sum(b - a for a, b in parts))
    end = 0
    for a, b in parts:
        out[:, end : (end := end + b - a)] = x[:, a:b]
    return out
