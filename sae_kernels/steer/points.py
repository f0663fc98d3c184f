"""Where a coder reads and writes."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..adapters import LanguageModel
from ..adapters.hook_points import HookPoint, listed
from ..adapters.hook_points import Points as OnOneSide
from ..architectures import SparseCoder
from ..errors import ArgumentError, ShapeError

Points = OnOneSide | tuple[OnOneSide, OnOneSide]  # of an autoencoder, or (hook_in, hook_out)


class Sides(NamedTuple):
    """Hook points read and written; one each, or those of several layers in order."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def same(self) -> bool:
        """What is written is what was read: an autoencoder's."""
        return [*map(HookPoint.parse, self.inputs)] == [*map(HookPoint.parse, self.outputs)]


def sides(points: Any) -> Sides:
    """A hook point, or (hook_in, hook_out), each a hook point or several.

    Raises:
        ArgumentError: anything else.
    """
    if isinstance(points, str):
        return Sides((points,), (points,))
    if isinstance(points, (tuple, list)) and len(points) == 2 and all(map(_is_side, points)):
        return Sides(listed("hook_in", points[0]), listed("hook_out", points[1]))
    raise ArgumentError(
        f"points = {points!r}, expected a hook point or a pair (hook_in, hook_out), each of them one or a tuple"
    )


def _is_side(side: Any) -> bool:
    return isinstance(side, str) or (isinstance(side, (tuple, list)) and all(isinstance(each, str) for each in side))


def widths(model: LanguageModel, coder: SparseCoder, at: Sides) -> tuple[list[int], list[int]]:
    """Features of each hook point.

    Raises:
        ShapeError: together they are not the coder's, or its layers are as many others.
    """
    found = [model.d_of(point) for point in at.inputs], [model.d_of(point) for point in at.outputs]
    if (sum(found[0]), sum(found[1])) != (coder.d_in, coder.d_out):
        shown = " and ".join(
            f"{', '.join(map(repr, points))} have {'+'.join(map(str, each))}"
            for points, each in zip(at, found, strict=True)
        )
        several = getattr(coder, "n_layers", 1) > 1 and len(at.inputs) == 1
        hint = " (a coder of several layers takes a tuple of hook points on each side)" if several else ""
        raise ShapeError(f"hook points {shown} features, the coder maps {coder.d_in} to {coder.d_out}{hint}")
    n_layers = getattr(coder, "n_layers", None)
    if n_layers is not None and any(len(each) != n_layers or len(set(each)) > 1 for each in found):
        raise ShapeError(
            f"{coder.architecture!r} has {n_layers} layers of like width, found {found[0]} in and {found[1]} out"
        )
    return found
