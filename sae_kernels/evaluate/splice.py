"""Putting the reconstruction, or an ablation, in the place of a language model's activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..adapters import LanguageModel
from ..adapters.hook_points import HookPoint, Points, Replace, listed
from ..architectures import SparseCoder
from ..errors import AdapterError, describe
from .stream import to_coder

Run = Callable[[LanguageModel, Tensor, Tensor], Tensor]


class LayerStream(Protocol):
    """A coder of several layers, at work layer by layer on some tokens."""

    def read(self, layer: int, x: Tensor) -> None:
        """What passes the layer's input, (tokens, d_in / n_layers); layers in order."""
        ...

    def write(self, layer: int) -> Tensor:
        """The layer's reconstruction, (tokens, d_out / n_layers), from the layers read so far."""
        ...


@runtime_checkable
class Streams(Protocol):
    """A coder whose reconstruction of a layer depends on the layers up to it: `clt`."""

    n_layers: int

    def stream(self) -> LayerStream:
        """A new one."""
        ...


def with_coder(coder: SparseCoder, hook_in: Points, hook_out: Points) -> Run:
    """`run(model, ids, keep)`: logits with what leaves hook_out replaced by the coder's reconstruction, computed from
    what passed hook_in in the same forward pass.

    With several hook points, each gets its part. A cross-layer transcoder reads and writes them layer by layer in that
    one pass, so that its later layers read what its earlier ones wrote. Any other coder of several hook points needs
    all of its input at once (a crosscoder's codes come from all layers), so it reads a pass of the model as it is,
    and a second one has all its reconstructions put in.

    Raises (on running):
        AdapterError: a hook_out is passed before its hook_in, or one does not give one row per token.
    """
    points = listed("hook_in", hook_in), listed("hook_out", hook_out)
    if isinstance(coder, Streams) and coder.n_layers == len(points[0]) == len(points[1]):
        return _layer_by_layer(coder, coder, *points)
    if len(points[0]) == len(points[1]) == 1:
        return _one_point(coder, points[0][0], points[1][0])
    return _from_a_clean_pass(coder, *points)


def _one_point(coder: SparseCoder, hook_in: str, hook_out: str) -> Run:
    def run(model: LanguageModel, ids: Tensor, keep: Tensor) -> Tensor:
        seen: list[Tensor] = []

        def look(activation: Tensor) -> Tensor:
            seen[:] = [_rows(activation, keep, hook_in)]
            return activation

        def replace(activation: Tensor) -> Tensor:
            if not seen:
                raise _out_of_order(hook_out, hook_in)
            return _replaced(activation, keep, coder(to_coder(coder, seen.pop())), hook_out)

        with model.intervene(_in_order([(hook_in, look), (hook_out, replace)])):
            return model.logits(ids)

    return run


def _layer_by_layer(coder: SparseCoder, streams: Streams, inputs: Sequence[str], outputs: Sequence[str]) -> Run:
    def run(model: LanguageModel, ids: Tensor, keep: Tensor) -> Tensor:
        stream, read = streams.stream(), set[int]()

        def look(activation: Tensor, layer: int) -> Tensor:
            if layer and layer - 1 not in read:
                raise AdapterError(
                    f"hook points: {inputs[layer]!r} is passed before {inputs[layer - 1]!r}, expected after"
                )
            read.add(layer)
            stream.read(layer, to_coder(coder, _rows(activation, keep, inputs[layer])))
            return activation

        def replace(activation: Tensor, layer: int) -> Tensor:
            if layer not in read:
                raise AdapterError(
                    f"hook points: {outputs[layer]!r} is passed before {inputs[layer]!r}, expected after"
                )
            return _replaced(activation, keep, stream.write(layer), outputs[layer])

        at: list[tuple[str, Replace]] = []
        for layer, (hook_in, hook_out) in enumerate(zip(inputs, outputs, strict=True)):
            at.append((hook_in, lambda activation, layer=layer: look(activation, layer)))
            at.append((hook_out, lambda activation, layer=layer: replace(activation, layer)))
        with model.intervene(_in_order(at)):
            return model.logits(ids)

    return run


def _from_a_clean_pass(coder: SparseCoder, inputs: Sequence[str], outputs: Sequence[str]) -> Run:
    def run(model: LanguageModel, ids: Tensor, keep: Tensor) -> Tensor:
        seen = model.activations(ids, inputs)
        x = torch.cat([to_coder(coder, _rows(seen[point], keep, point)) for point in inputs], dim=1)
        with model.intervene(_parts(model, coder(x), keep, outputs)):
            return model.logits(ids)

    return run


def with_constant(value: Tensor, hook_out: Points) -> Run:
    """`run(model, ids, keep)`: logits with every activation at hook_out replaced by one vector (d_out,), or by its part
    of it at each of several hook points."""
    points = listed("hook_out", hook_out)

    def run(model: LanguageModel, ids: Tensor, keep: Tensor) -> Tensor:
        with model.intervene(_parts(model, value.expand(int(keep.sum()), -1), keep, points)):
            return model.logits(ids)

    return run


def _parts(model: LanguageModel, rows: Tensor, keep: Tensor, points: Sequence[str]) -> dict[str, Replace]:
    """Rows (tokens, Σ d) cut into what goes to each hook point."""
    parts = rows.split([model.d_of(point) for point in points], dim=1)
    return {
        point: lambda activation, part=part, point=point: _replaced(activation, keep, part, point)
        for point, part in zip(points, parts, strict=True)
    }


def _out_of_order(early: str, late: str) -> AdapterError:
    return AdapterError(f"hook points: {early!r} is passed before {late!r}, expected after")


def _in_order(replacements: Sequence[tuple[str, Replace]]) -> dict[str, Replace]:
    """By hook point; several at one point (in whatever spelling) one after the other."""
    at: dict[HookPoint, list[Replace]] = {}
    for point, replace in replacements:
        at.setdefault(HookPoint.parse(point), []).append(replace)

    def chain(steps: Sequence[Replace]) -> Replace:
        def run(activation: Tensor) -> Tensor:
            for step in steps:
                activation = step(activation)
            return activation

        return run

    return {str(point): chain(steps) for point, steps in at.items()}


def _rows(activation: Tensor, keep: Tensor, point: str) -> Tensor:
    """Rows of the tokens to keep, copied: a later in-place operation can't change what was seen."""
    flat, where = _flat(activation, keep, point)
    return flat[where]


def _replaced(activation: Tensor, keep: Tensor, rows: Tensor, point: str) -> Tensor:
    flat, where = _flat(activation, keep, point)
    return torch.index_put(flat, (where,), rows.to(flat.device, flat.dtype)).view(activation.shape)


def _flat(activation: Tensor, keep: Tensor, point: str) -> tuple[Tensor, Tensor]:
    """(tokens, d) and (tokens,) bool."""
    flat = activation.reshape(-1, activation.shape[-1])
    if len(flat) != keep.numel():
        raise AdapterError(
            f"hook point {point!r}: {describe(activation)} for {tuple(keep.shape)} tokens, expected one row per token"
        )
    return flat, keep.flatten().to(flat.device)
