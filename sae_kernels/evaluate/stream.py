"""A source's tokens in batches of even size, and a coder as it is used for inference."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from tqdm import tqdm

from ..adapters import ActivationBatch, ActivationSource, LanguageSource
from ..architectures import SparseCoder
from ..errors import AdapterError, ArgumentError, ShapeError


def token_batches(
    source: ActivationSource,
    max_tokens: int | None,
    batch_tokens: int,
    progress: bool = False,
    title: str = "tokens",
) -> Iterator[ActivationBatch]:
    """The first `max_tokens` of a source (None: all), at most `batch_tokens` at a time, never an empty batch.

    Raises:
        ArgumentError: a count below 1, or no `max_tokens` for a source that never ends.
        AdapterError: the source has no tokens.
    """
    check_count(max_tokens=max_tokens, batch_tokens=batch_tokens)
    if max_tokens is None and source.n_blocks is None:
        raise ArgumentError("max_tokens = None, expected a number: the source never ends")
    done = 0
    with tqdm(
        total=_expected(source, max_tokens), unit="tok", unit_scale=True, desc=title, disable=not progress
    ) as bar:
        for block in _blocks(source):
            for start in range(0, len(block), batch_tokens):
                stop = min(start + batch_tokens, len(block))
                if max_tokens is not None:
                    stop = min(stop, start + max_tokens - done)
                yield _slice(block, start, stop)
                done += stop - start
                bar.update(stop - start)
                if done == max_tokens:
                    return
    if done == 0:
        raise AdapterError("the source has no tokens, expected at least one that is not special")


@contextmanager
def inference(coder: SparseCoder) -> Generator[None]:
    """Without gradients and in eval mode; each module is left in the mode it was in."""
    modes = [(module, module.training) for module in coder.modules()]
    coder.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def to_coder(coder: SparseCoder, x: Tensor) -> Tensor:
    """x on the coder's device, in its dtype."""
    return x.to(coder.W_enc.device, coder.W_enc.dtype)


def check_widths(coder: SparseCoder, source: ActivationSource) -> None:
    """Raise ShapeError unless the source feeds this coder."""
    if (coder.d_in, coder.d_out) != (source.d_in, source.d_out):
        raise ShapeError(
            f"the coder maps {coder.d_in} features to {coder.d_out}, "
            f"the source gives {source.d_in} and {source.d_out}; expected the same"
        )


def check_count(**values: int | None) -> None:
    """Raise ArgumentError unless every value is None or an integer of at least 1."""
    for name, value in values.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ArgumentError(f"{name} = {value!r}, expected an integer >= 1")


def _blocks(source: ActivationSource) -> Iterator[ActivationBatch]:
    index = 0
    while source.n_blocks is None or index < source.n_blocks:
        yield source.block(index)
        index += 1


def _slice(batch: ActivationBatch, start: int, stop: int) -> ActivationBatch:
    def part(rows: Tensor | None) -> Tensor | None:
        return None if rows is None else rows[start:stop]

    input = batch.input[start:stop]
    target = input if batch.target is batch.input else batch.target[start:stop]
    return ActivationBatch(input, target, part(batch.ids), part(batch.sequence), part(batch.position))


def _expected(source: ActivationSource, max_tokens: int | None) -> int | None:
    """For the progress bar: an upper bound of what will be read."""
    if not isinstance(source, LanguageSource) or source.n_blocks is None:
        return max_tokens
    there = source.sequences.numel()
    return there if max_tokens is None else min(there, max_tokens)
