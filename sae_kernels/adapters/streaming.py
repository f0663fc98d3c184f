"""Text that is read while training goes on: nothing waits for the end of a corpus, and none of it is kept.

A stream is cut into groups of texts by their characters alone, so that going on in the middle of it means reading past
what came before, without tokenizing it. Group i of a stream, tokenized and packed, is block i of activations.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator

from torch import Tensor

from ..errors import AdapterError
from ._checks import positive
from .base import ActivationBatch, ActivationSource

Text = tuple[str, str]  # name and text
Opener = Callable[[], Iterable[Text]]


class TextStream:
    """Groups of about `characters` characters of the texts that `open` gives, the first `skip` characters left out.

    In every epoch `open` is called again, and the texts pass a buffer of `buffer` texts (0: none), from which they
    leave at random: seeded, so that group i is the same whenever it is asked for. A group that is asked for in order
    costs its own reading; another one costs reading from the start. The last group of an epoch is longer by what would
    be less than half a group.
    """

    def __init__(
        self, open: Opener, characters: int, *, skip: int = 0, buffer: int = 0, seed: int = 0, epochs: int | None = None
    ) -> None:
        positive(characters=characters, epochs=epochs)
        self._open, self._characters, self._skip = open, characters, skip
        self._buffer, self._seed, self._epochs = buffer, seed, epochs
        self._next, self._groups = 0, iter(())

    def group(self, index: int) -> list[Text]:
        """The texts of a group.

        Raises:
            AdapterError: the stream has fewer, or no texts at all.
        """
        if index < self._next or self._next == 0:
            self._next, self._groups = 0, self._all()
        for group in self._groups:
            self._next += 1
            if self._next == index + 1:
                return group
        raise AdapterError(f"block {index}: the texts of {self._epochs} epochs fill {self._next} blocks")

    def count(self) -> int | None:
        """How many groups there are, by reading all texts once; None where epochs never end."""
        return None if self._epochs is None else sum(1 for _ in self._all())

    def _all(self) -> Iterator[list[Text]]:
        epoch = 0
        while self._epochs is None or epoch < self._epochs:
            texts = skipped(self._open(), self._skip)
            if self._buffer:
                texts = shuffled(texts, self._buffer, f"{self._seed}/{epoch}")
            any_text = False
            for group in _grouped(texts, self._characters):
                any_text = True
                yield group
            if not any_text:
                raise AdapterError(f"no texts to read after the first {self._skip:,} characters, expected some")
            epoch += 1


def _grouped(texts: Iterable[Text], characters: int) -> Iterator[list[Text]]:
    """Lists of texts that reach `characters` together; what is left at the end joins the last if it is short."""
    complete: list[Text] | None = None
    group: list[Text] = []
    size = 0
    for text in texts:
        group.append(text)
        size += len(text[1])
        if size >= characters:
            if complete is not None:
                yield complete
            complete, group, size = group, [], 0
    if complete is None:
        if group:
            yield group
    elif 2 * size < characters:
        yield complete + group
    else:
        yield complete
        yield group


def skipped(texts: Iterable[Text], characters: int) -> Iterator[Text]:
    """What follows after `leading(texts, characters)`."""
    texts = iter(texts)
    for _ in leading(texts, characters):
        pass
    return texts


def leading(texts: Iterable[Text], characters: int) -> Iterator[Text]:
    """The first texts, until they hold so many characters."""
    if characters > 0:
        for text in texts:
            yield text
            characters -= len(text[1])
            if characters <= 0:
                return


def shuffled(texts: Iterable[Text], buffer: int, seed: str) -> Iterator[Text]:
    """The texts in a random order that mixes about `buffer` neighbours: a text leaves a full buffer at random and the
    next takes its place."""
    chance = random.Random(seed)
    held: list[Text] = []
    for text in texts:
        if len(held) < buffer:
            held.append(text)
            continue
        place = chance.randrange(buffer)
        yield held[place]
        held[place] = text
    chance.shuffle(held)
    yield from held


class StreamActivations:
    """An `ActivationSource` over a stream: block i holds the tokens of group i, mixed.

    `sequences(texts)` packs texts into token sequences; `read(sequences, seed)` makes the source of one block of them.
    `n_blocks` is found by reading the texts once, where epochs end.
    """

    def __init__(
        self,
        stream: TextStream,
        sequences: Callable[[Iterable[Text]], Tensor],
        read: Callable[[Tensor, int], ActivationSource],
    ) -> None:
        self._stream, self._sequences, self._read = stream, sequences, read
        first = self._source(0)
        self.d_in, self.d_out = first.d_in, first.d_out
        self.widths: tuple[int, ...] = getattr(first, "widths", (first.d_in,))
        self.n_blocks = stream.count()

    def block(self, index: int) -> ActivationBatch:
        """The activations of group `index`. `sequence` counts inside the block.

        Raises:
            AdapterError: the stream has fewer groups.
        """
        return self._source(index).block(0)

    def _source(self, index: int) -> ActivationSource:
        return self._read(self._sequences(self._stream.group(index)), index)
