"""Activations of language models on text, in deterministic blocks. Works with any `LanguageModel`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypedDict, Unpack

import torch
from torch import Tensor

from ..errors import AdapterError, ArgumentError, describe
from ._checks import positive
from ._order import BlockOrder
from .base import ActivationBatch, LanguageModel
from .hook_points import as_given, listed

Reading = tuple[LanguageModel, str]  # a model and one of its hook points
Seen = dict[tuple[int, str], Tensor]  # by `id` of the model (which need not be hashable) and hook point


class BlockOptions(TypedDict, total=False):
    """Keywords of every source of text: see `TextBlocks`."""

    block_sequences: int
    forward_sequences: int
    shuffle: bool
    seed: int
    epochs: int | None


def pack(
    model: LanguageModel,
    texts: Iterable[tuple[str, str]],
    context_length: int,
    max_tokens: int | None = None,
) -> Tensor:
    """Token sequences of equal length, (n, context_length) int32, from (name, text) pairs.

    The texts are laid end to end, an end-of-text token after each (the beginning-of-text token where there is
    no such), and cut; each piece starts with the beginning-of-text token, if the model has one. What is left
    at the end is dropped. `max_tokens` is the most to take of the laid-out tokens.

    Raises:
        ArgumentError: a context length the model can't take.
        AdapterError: the texts do not fill one sequence.
    """
    positive(context_length=context_length, max_tokens=max_tokens)
    prefix = [] if model.bos_id is None else [model.bos_id]
    body = context_length - len(prefix)
    if body < 1:
        raise ArgumentError(f"context_length = {context_length}, expected at least 2: one token begins the text")
    if model.max_context is not None and context_length > model.max_context:
        raise ArgumentError(f"context_length = {context_length}, the model takes at most {model.max_context}")
    separator = [i for i in (model.eos_id, model.bos_id) if i is not None][:1]

    end = torch.tensor(separator, dtype=torch.int32)
    pieces, total = [], 0
    for _, text in texts:
        ids = model.tokenize(text).to(torch.int32)
        pieces += [ids, end]
        total += len(ids) + len(end)
        if max_tokens is not None and total >= max_tokens:
            break
    total = min(total, max_tokens or total)
    n = total // body
    if n == 0:
        raise AdapterError(f"the texts give {total} tokens, expected at least {body} for one sequence")
    rows = torch.cat(pieces)[: n * body].view(n, body)
    start = torch.tensor(prefix, dtype=torch.int32).expand(n, -1)
    return torch.cat([start, rows], dim=1)


class TextBlocks:
    """Deterministic blocks of activations of one or several language models on the same token sequences.

    `inputs`, `targets`: pairs of a model and one of its hook points, whose features stand side by side; with the same
    points for both, the target is the input. Tokens that are special to any of the models are left out.
    """

    def __init__(
        self,
        sequences: Tensor,
        inputs: Sequence[Reading],
        targets: Sequence[Reading],
        *,
        block_sequences: int = 64,
        forward_sequences: int = 16,
        shuffle: bool = False,
        seed: int = 0,
        epochs: int | None = 1,
    ) -> None:
        positive(block_sequences=block_sequences, forward_sequences=forward_sequences)
        if sequences.ndim != 2 or sequences.is_floating_point():
            raise AdapterError(f"sequences {describe(sequences)}, expected (n, context_length) token ids")
        self.sequences, self.forward_sequences = sequences, forward_sequences
        self._inputs, self._targets = list(inputs), list(targets)
        self._same = [point for _, point in inputs] == [point for _, point in targets]
        self.widths = tuple(model.d_of(point) for model, point in inputs)  # of the parts that stand side by side
        self.d_in, self.d_out = sum(self.widths), sum(model.d_of(point) for model, point in targets)
        self.order = BlockOrder(len(sequences), block_sequences, shuffle, seed, epochs)
        self.n_blocks = self.order.n_blocks
        special = {i for model, _ in self._inputs for i in model.special_ids}
        self._special = torch.tensor(sorted(special), dtype=torch.int64)

    def block(self, index: int) -> ActivationBatch:
        """Activations of block `index`, on the model's device; ids, sequence and position beside them.

        Raises:
            AdapterError: there is no such block, or a hook point does not give one row per token.
        """
        chosen = self.order.items(index)
        ids = self.sequences[chosen].long()
        keep = ~torch.isin(ids, self._special)
        inputs, targets = [], []
        n = self.forward_sequences
        for part, kept in zip(ids.split(n), keep.split(n), strict=True):
            seen = self._seen(part)
            inputs.append(_side_by_side(seen, self._inputs, kept))
            if not self._same:
                targets.append(_side_by_side(seen, self._targets, kept))
        sequence, position = keep.nonzero(as_tuple=True)
        labels = {"ids": ids[keep], "sequence": chosen[sequence], "position": position}
        order = self.order.rows(index, len(position))

        input = _joined(inputs, order)
        target = input if self._same else _joined(targets, order)
        if order is not None:
            labels = {name: values[order] for name, values in labels.items()}
        return ActivationBatch(input, target, **labels)

    def _seen(self, ids: Tensor) -> Seen:
        """What passes all hook points, in one forward pass of each model."""
        wanted: dict[int, tuple[LanguageModel, set[str]]] = {}
        for model, point in (*self._inputs, *self._targets):
            wanted.setdefault(id(model), (model, set()))[1].add(point)
        return {
            (number, point): activation
            for number, (model, points) in wanted.items()
            for point, activation in model.activations(ids, points).items()
        }


class TextActivations(TextBlocks):
    """A `LanguageSource`: block i reads some sequences and keeps the tokens that are not special.

    `hook_in`, `hook_out`: a hook point, or several whose features stand side by side in their order, (tokens, Σ d), for
    a crosscoder or a cross-layer transcoder. `hook_out` None: target is input (an autoencoder). With `shuffle`, each
    epoch takes the sequences in a new seeded order and mixes the rows of a block; without, all stays in reading order.
    `forward_sequences` go through the model at a time.
    """

    def __init__(
        self,
        model: LanguageModel,
        sequences: Tensor,
        hook_in: str | Sequence[str],
        hook_out: str | Sequence[str] | None = None,
        **options: Unpack[BlockOptions],
    ) -> None:
        self.model = model
        self.hook_in = as_given("hook_in", hook_in)
        self.hook_out = self.hook_in if hook_out is None else as_given("hook_out", hook_out)
        inputs = [(model, point) for point in listed("hook_in", self.hook_in)]
        targets = [(model, point) for point in listed("hook_out", self.hook_out)]
        super().__init__(sequences, inputs, targets, **options)


class CrossModelActivations(TextBlocks):
    """The same hook points of several models that read one text with one tokenizer, side by side: all of the first
    model's, then of the second's. For a crosscoder between models (a base model and its finetune, say).

    No `LanguageSource`: there is no one model whose loss a reconstruction could be measured by.
    """

    def __init__(
        self,
        models: Sequence[LanguageModel],
        sequences: Tensor,
        hook_in: str | Sequence[str],
        hook_out: str | Sequence[str] | None = None,
        **options: Unpack[BlockOptions],
    ) -> None:
        if len(models) < 2:
            raise ArgumentError(f"{len(models)} models, expected at least two")
        self.models = tuple(models)
        inputs = [(model, point) for model in models for point in listed("hook_in", hook_in)]
        targets = inputs
        if hook_out is not None:
            targets = [(model, point) for model in models for point in listed("hook_out", hook_out)]
        super().__init__(sequences, inputs, targets, **options)


def _rows(activation: Tensor, point: str, keep: Tensor) -> Tensor:
    rows = activation.reshape(-1, activation.shape[-1])  # some modules see (tokens, d)
    if len(rows) != keep.numel():
        raise AdapterError(
            f"hook point {point!r}: {describe(activation)} for {tuple(keep.shape)} tokens, expected one row per token"
        )
    return rows[keep.flatten().to(rows.device)]


def _side_by_side(seen: Seen, readings: list[Reading], keep: Tensor) -> Tensor:
    parts = [_rows(seen[id(model), point], point, keep) for model, point in readings]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _joined(parts: list[Tensor], order: Tensor | None) -> Tensor:
    rows = torch.cat(parts)
    return rows if order is None else rows[order.to(rows.device)]
