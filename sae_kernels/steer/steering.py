"""`steer`: a language model with some latents edited."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from ..adapters import LanguageModel, ReadsAhead
from ..adapters.hook_points import Replace
from ..architectures import SparseCoder
from ..errors import AdapterError, ArgumentError, describe
from .delta import Layered, is_layered, is_linear, layer_delta, reads, reconstruction_delta
from .edits import Edit, check_edits
from .points import Points, Sides, sides, widths


@contextmanager
def steer(model: LanguageModel, coder: SparseCoder, points: Points, edits: Edit | Sequence[Edit]) -> Generator[None]:
    """Within the block, y → y + ŷ(edited codes) − ŷ(codes) at a hook point: the coder's error stays as it is.

        with steer(model, sae, "model.layers.3", Clamp.times_max(latent, table.max_activation[latent])):
            print(model.generate("The bridge", 40))

    `points`: the hook point of an autoencoder; (hook_in, hook_out) of a transcoder, whose codes come from
    what passed hook_in in the same forward pass. Several edits of one latent apply in order. A token that no
    edit changes keeps its activation bit for bit. Every position is edited, those of special tokens and of
    the prompt too.

    A coder of several layers has a tuple of hook points on each side, `(source.hook_in, source.hook_out)` of the source
    it was trained on. An edit writes to all layers the latent writes to, and each keeps its own error:

    - A latent of a cross-layer transcoder reads its layer in the same forward pass (which earlier edits may have
      changed), and writes to that layer and those behind it.
    - Codes that come from several layers at once (a crosscoder's) are read before the first of them is written to: in
      a forward pass of their own, of the model without these edits, before each one. It costs as much again, and is not
      needed where all edits are `Add`s. While text is generated that other pass reads the same text, with a key-value
      cache of its own.

    Raises:
        ArgumentError, IndexRangeError: edits or points that make no sense; codes of several layers, of a model that
            cannot be read ahead (`ReadsAhead`).
        ShapeError: the hook points' widths are not the coder's.
        AdapterError (on running): a hook_out is passed before its hook_in.
    """
    at, chosen = sides(points), check_edits(edits, coder.d_sae)
    _, parts = widths(model, coder, at)
    if not chosen:
        yield
        return
    modes = [(module, module.training) for module in coder.modules()]
    coder.eval()
    try:
        with _edited(model, coder, at, parts, chosen):
            yield
    finally:
        for module, training in modes:
            module.training = training


def _edited(
    model: LanguageModel, coder: SparseCoder, at: Sides, parts: list[int], edits: list[Edit]
) -> AbstractContextManager[None]:
    layers: Any = coder
    if len(at.inputs) > 1 and is_layered(layers):
        return _layer_by_layer(model, coder, layers, at, parts, edits)
    if len(at.inputs) == len(at.outputs) == 1:
        return model.intervene(_one_point(coder, at, edits))
    return _all_layers_at_once(model, coder, at, parts, edits)


def _one_point(coder: SparseCoder, at: Sides, edits: list[Edit]) -> dict[str, Replace]:
    """Codes and edits at one place, or a place and one behind it."""
    (hook_in,), (hook_out,) = at

    def edited(y: Tensor, x: Tensor) -> Tensor:
        with torch.no_grad():
            return _changed(y, *reconstruction_delta(coder, _rows(coder, x), edits), hook_out)

    if at.same:
        return {hook_out: lambda activation: edited(activation, activation)}
    seen: list[Tensor] = []

    def look(activation: Tensor) -> Tensor:
        seen[:] = [activation.clone()]  # a later in-place operation would change what was seen
        return activation

    def replace(activation: Tensor) -> Tensor:
        if not seen:
            raise AdapterError(f"hook points: {hook_out!r} is passed before {hook_in!r}, expected after")
        return edited(activation, seen.pop())

    return {hook_in: look, hook_out: replace}


@contextmanager
def _layer_by_layer(
    model: LanguageModel, coder: SparseCoder, layers: Layered, at: Sides, parts: list[int], edits: list[Edit]
) -> Generator[None]:
    """Each edited layer is read when it is passed; what its latents write waits for the layers behind it."""
    by_layer: dict[int, list[Edit]] = {}
    for edit in edits:
        by_layer.setdefault(layers.layer_of(edit.latent), []).append(edit)
    waiting: dict[int, tuple[tuple[Tensor, ...], Tensor]] = {}  # of an edited layer: its parts from there on, and where

    def look(activation: Tensor, layer: int) -> Tensor:
        with torch.no_grad():
            delta, where = layer_delta(layers, layer, _rows(coder, activation), by_layer[layer])
        waiting[layer] = delta.split(parts[layer:], dim=1), where
        return activation

    def replace(activation: Tensor, layer: int) -> Tensor:
        for source in by_layer:
            if source > layer:
                continue
            if source not in waiting:
                found = f"{at.outputs[layer]!r} is passed before {at.inputs[source]!r}"
                raise AdapterError(f"hook points: {found}, expected after")
            columns, where = waiting[source]
            activation = _changed(activation, columns[layer - source], where, at.outputs[layer])
        if layer == len(parts) - 1:
            waiting.clear()
        return activation

    written = range(min(by_layer), len(parts))
    looks = {at.inputs[layer]: lambda a, layer=layer: look(a, layer) for layer in by_layer}
    replacements = {at.outputs[layer]: lambda a, layer=layer: replace(a, layer) for layer in written}
    with model.intervene(looks), model.intervene(replacements):  # a layer read and written at one place is read first
        yield


@contextmanager
def _all_layers_at_once(
    model: LanguageModel, coder: SparseCoder, at: Sides, parts: list[int], edits: list[Edit]
) -> Generator[None]:
    """What edits change is known before the first layer is passed."""
    known: list[tuple[tuple[Tensor, ...], Tensor]] = []

    @torch.no_grad()
    def take(seen: dict[str, Tensor]) -> None:
        x = torch.cat([_rows(coder, seen[point]) for point in at.inputs], dim=1)
        delta, where = reconstruction_delta(coder, x, edits)
        known[:] = [(delta.split(parts, dim=1), where)]

    def replace(activation: Tensor, layer: int) -> Tensor:
        columns, where = known[0]
        rows = activation.shape[:-1].numel()
        if not ahead:  # one row, which holds for all tokens
            return _changed(activation, columns[layer].expand(rows, -1), where.expand(rows), at.outputs[layer])
        return _changed(activation, columns[layer], where, at.outputs[layer])

    ahead = reads(edits) or not is_linear(coder)
    replacements = {point: lambda a, layer=layer: replace(a, layer) for layer, point in enumerate(at.outputs)}
    with ExitStack() as held:
        if not ahead:
            take({point: coder.b_dec.new_zeros(1, model.d_of(point)) for point in at.inputs})
        elif isinstance(model, ReadsAhead):
            held.enter_context(model.read_ahead(at.inputs, take))
        else:
            raise ArgumentError(
                f"{coder.architecture!r} takes its codes from {len(at.inputs)} hook points at once, and a "
                f"{type(model).__name__} cannot be read ahead (it has no read_ahead): expected edits that are all Add"
            )
        held.enter_context(model.intervene(replacements))
        yield


def _rows(coder: SparseCoder, activation: Tensor) -> Tensor:
    """(tokens, d), where the coder is and in its dtype."""
    return activation.reshape(-1, activation.shape[-1]).to(coder.W_enc.device, coder.W_enc.dtype)


@torch.no_grad()
def _changed(y: Tensor, delta: Tensor, changed: Tensor, point: str) -> Tensor:
    """y + delta for the tokens that are changed; the others bit for bit as they are."""
    flat = y.reshape(-1, y.shape[-1])
    if len(flat) != len(delta):
        raise AdapterError(
            f"hook points: {describe(y)} at {point!r} for codes of {len(delta)} tokens, expected as many"
        )
    delta, changed = delta.to(flat.device), changed.to(flat.device)
    total = flat.to(torch.promote_types(flat.dtype, delta.dtype)) + delta
    return torch.where(changed[:, None], total.to(flat.dtype), flat).view(y.shape)
