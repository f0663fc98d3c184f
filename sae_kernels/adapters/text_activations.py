"""Activations of a language model on text, in deterministic blocks. Works with any `LanguageModel`."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..errors import AdapterError, ArgumentError, describe
from ._checks import positive
from ._order import BlockOrder
from .base import ActivationBatch, LanguageModel


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


class TextActivations:
    """A `LanguageSource`: block i reads some sequences and keeps the tokens that are not special.

    `hook_out` None: target is input (an autoencoder). With `shuffle`, each epoch takes the sequences in a new
    seeded order and mixes the rows of a block; without, all stays in reading order. `forward_sequences` go
    through the model at a time.
    """

    def __init__(
        self,
        model: LanguageModel,
        sequences: Tensor,
        hook_in: str,
        hook_out: str | None = None,
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
        self.model, self.sequences = model, sequences
        self.hook_in, self.hook_out = hook_in, hook_in if hook_out is None else hook_out
        self.forward_sequences = forward_sequences
        self.d_in, self.d_out = model.d_of(self.hook_in), model.d_of(self.hook_out)
        self.order = BlockOrder(len(sequences), block_sequences, shuffle, seed, epochs)
        self.n_blocks = self.order.n_blocks
        self._special = torch.tensor(sorted(model.special_ids), dtype=torch.int64)

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
            seen = self.model.activations(part, {self.hook_in, self.hook_out})
            inputs.append(self._rows(seen, self.hook_in, kept))
            if self.hook_out != self.hook_in:
                targets.append(self._rows(seen, self.hook_out, kept))
        sequence, position = keep.nonzero(as_tuple=True)
        labels = {"ids": ids[keep], "sequence": chosen[sequence], "position": position}
        order = self.order.rows(index, len(position))

        input = _joined(inputs, order)
        target = input if self.hook_out == self.hook_in else _joined(targets, order)
        if order is not None:
            labels = {name: values[order] for name, values in labels.items()}
        return ActivationBatch(input, target, **labels)

    def _rows(self, seen: dict[str, Tensor], point: str, keep: Tensor) -> Tensor:
        activation = seen[point]
        rows = activation.reshape(-1, activation.shape[-1])  # some modules see (tokens, d)
        if len(rows) != keep.numel():
            raise AdapterError(
                f"hook point {point!r}: {describe(activation)} for {tuple(keep.shape)} tokens, "
                "expected one row per token"
            )
        return rows[keep.flatten().to(rows.device)]


def _joined(parts: list[Tensor], order: Tensor | None) -> Tensor:
    rows = torch.cat(parts)
    return rows if order is None else rows[order.to(rows.device)]
