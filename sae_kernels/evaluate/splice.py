"""Putting the reconstruction, or an ablation, in the place of a language model's activations."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..adapters import LanguageModel
from ..adapters.hook_points import HookPoint, Replace
from ..architectures import SparseCoder
from ..errors import AdapterError, describe
from .stream import to_coder

Run = Callable[[LanguageModel, Tensor, Tensor], Tensor]


def with_coder(coder: SparseCoder, hook_in: str, hook_out: str) -> Run:
    """`run(model, ids, keep)`: logits with what leaves hook_out replaced by the coder's reconstruction,
    computed from what passed hook_in in the same forward pass.

    Raises (on running):
        AdapterError: hook_out is passed before hook_in, or either does not give one row per token.
    """

    def run(model: LanguageModel, ids: Tensor, keep: Tensor) -> Tensor:
        seen: list[Tensor] = []

        def look(activation: Tensor) -> Tensor:
            seen[:] = [_rows(activation, keep, hook_in)]
            return activation

        def replace(activation: Tensor) -> Tensor:
            if not seen:
                raise AdapterError(f"hook points: {hook_out!r} is passed before {hook_in!r}, expected after")
            return _replaced(activation, keep, coder(to_coder(coder, seen.pop())), hook_out)

        def both(activation: Tensor) -> Tensor:
            return replace(look(activation))

        one_point = HookPoint.parse(hook_in) == HookPoint.parse(hook_out)
        replacements: dict[str, Replace] = {hook_in: both} if one_point else {hook_in: look, hook_out: replace}
        with model.intervene(replacements):
            return model.logits(ids)

    return run


def with_constant(value: Tensor, hook_out: str) -> Run:
    """`run(model, ids, keep)`: logits with every activation at hook_out replaced by one vector (d_out,)."""

    def run(model: LanguageModel, ids: Tensor, keep: Tensor) -> Tensor:
        rows = value.expand(int(keep.sum()), -1)
        with model.intervene({hook_out: lambda activation: _replaced(activation, keep, rows, hook_out)}):
            return model.logits(ids)

    return run


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
