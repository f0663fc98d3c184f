"""Where in the text a latent is strongest."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters import CrossModelActivations, LanguageModel, LanguageSource
from ..errors import AdapterError, IndexRangeError
from ..evaluate.stream import check_count
from .table import FeatureTable


@dataclass(frozen=True)
class Context:
    """A piece of text around one token, `peak`, on which the latent's activation is `value`."""

    value: float
    before: str
    peak: str
    after: str
    sequence: int
    position: int


def contexts(
    table: FeatureTable,
    source: LanguageSource | CrossModelActivations,
    latent: int,
    width: int = 12,
    n: int | None = None,
) -> list[Context]:
    """A latent's strongest tokens, best first, each with up to `width` tokens either side; at most `n` of
    them.

    A text ends where a special token stands (bos, eos). A token inside a context that is already there is
    left out, so that one passage is shown once.

    Raises:
        IndexRangeError: no such latent, or places that the source does not have (the table is of another
        source). AdapterError: the table was made without a language model. ArgumentError: width or n below
        1.
    """
    check_count(width=width, n=n)
    table.check_latent(latent)
    if table.sequence is None or table.position is None:
        raise AdapterError("the table's source read no text, so there are no contexts to show")
    model = source.models[0] if isinstance(source, CrossModelActivations) else source.model  # one tokenizer
    found: list[Context] = []
    shown: set[tuple[int, int]] = set()
    places = zip(
        table.values[latent].tolist(),
        table.sequence[latent].tolist(),
        table.position[latent].tolist(),
        strict=True,
    )
    for value, sequence, position in places:
        if position < 0 or len(found) == n:
            break
        if (sequence, position) in shown:
            continue
        n_sequences, length = source.sequences.shape
        if sequence >= n_sequences or position >= length:
            raise IndexRangeError(
                f"token {position} of sequence {sequence}, the source has {n_sequences} of {length} tokens; "
                "expected the source the table was made from"
            )
        ids = source.sequences[sequence].cpu().long()
        start, stop = _window(ids, position, width, model)
        shown |= {(sequence, at) for at in range(start, stop)}
        found.append(Context(value, *_texts(model, ids[start:stop], position - start), sequence, position))
    return found


def format_contexts(found: list[Context], columns: int = 100) -> str:
    """One line a context, the peaks «marked» one below the other: activation, text before, peak, text after.

    Line breaks show as ⏎, tabs as ⇥, long runs of spaces shortened; what does not fit into `columns` is cut
    off at the outer ends."""
    peaks = max((len(_visible(context.peak)) for context in found), default=0)
    side = max((columns - 8 - 2 - 2 - min(peaks, 20)) // 2, 8)
    lines = []
    for context in found:
        before, peak, after = (_visible(text) for text in (context.before, context.peak, context.after))
        before = before if len(before) <= side else "…" + before[len(before) - side + 1 :]
        after = after if len(after) <= side else after[: side - 1] + "…"
        lines.append(f"{context.value:8.2f}  {before:>{side}}«{peak}»{after}".rstrip())
    return "\n".join(lines)


def _window(ids: Tensor, position: int, width: int, model: LanguageModel) -> tuple[int, int]:
    """From the token outwards, up to a special one."""
    special = torch.isin(ids, torch.tensor(sorted(model.special_ids), dtype=torch.int64)).tolist()
    start, stop = position, position + 1
    while start > 0 and position - start < width and not special[start - 1]:
        start -= 1
    while stop < len(ids) and stop - position <= width and not special[stop]:
        stop += 1
    return start, stop


def _texts(model: LanguageModel, ids: Tensor, peak: int) -> tuple[str, str, str]:
    """Texts before, of and after the peak. As parts of one text where that splits cleanly, because some
    tokenizers drop the space in front of a token that stands alone; else each on its own (a character may
    span several tokens)."""
    before, upto, whole = (model.detokenize(ids[:end]) if end else "" for end in (peak, peak + 1, len(ids)))
    if upto.startswith(before) and whole.startswith(upto):
        return before, upto[len(before) :], whole[len(upto) :]
    after = ids[peak + 1 :]
    return before, model.detokenize(ids[peak : peak + 1]), model.detokenize(after) if len(after) else ""


def _visible(text: str) -> str:
    shown = re.sub(" {4,}", "   ", text.replace("\r\n", "⏎").replace("\n", "⏎").replace("\t", "⇥"))
    return "".join(character if character.isprintable() else "·" for character in shown)
