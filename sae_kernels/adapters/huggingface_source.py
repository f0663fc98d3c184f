"""The `huggingface` adapter: language models reading text, at once or as a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from ..errors import AdapterError, ArgumentError
from . import hook_points
from ._checks import fraction, need, one_of, paths, positive
from ._order import Split, split_range
from .datasets import dataset_texts
from .hook_points import listed
from .huggingface import HuggingFaceModel
from .streaming import Opener, StreamActivations, TextStream, leading
from .text_activations import BlockOptions, CrossModelActivations, TextActivations, pack
from .texts import STDLIB, read_texts, stdlib_texts

PIECE = 1 << 16  # characters of a plain text file that a stream reads at a time
_PROBE = 'def naïve(x1):\n    return "The quick brown fox", 3.14159  # unbelievably, 数\n'  # many kinds of token
TextSource = TextActivations | CrossModelActivations


def open_source(
    *,
    model: str | Path | list[str],
    text: str | Path | list[str] | None = None,
    dataset: str | None = None,
    dataset_config: str | None = None,
    dataset_split: str = "train",
    text_column: str = "text",
    stream: bool = False,
    shuffle_texts: int = 1000,
    heldout_characters: int = 2_000_000,
    hook_in: str | list[str],
    hook_out: str | list[str] | None = None,
    split: Split = "train",
    heldout: float = 0.05,
    context_length: int = 256,
    block_sequences: int = 64,
    forward_sequences: int = 16,
    max_tokens: int | None = None,
    seed: int = 0,
    epochs: int | None = None,
    dtype: str = "auto",
    device: str = "cpu",
    local_files_only: bool = False,
    revision: str | list[str] | None = None,
) -> TextSource | StreamActivations:
    """The `[activations]` table of a training configuration with `adapter = "huggingface"`.

    model: folder or hub id of a causal language model; a list of them (one tokenizer): hook points are read from each,
        and stand side by side
    text: a text file, a .jsonl file ({"text": …} a line), a folder, a list of these, or "python-stdlib"
    dataset: in the place of `text`, a dataset of the hub or a folder of one; always a stream
    dataset_config, dataset_split, text_column: which part of it, and the column that holds the texts
    stream: read the text while training goes on, instead of all of it before
    shuffle_texts: texts that a stream holds to draw the next from at random
    heldout_characters: of a stream, its beginning is held out; "train" leaves it out, "heldout" is it
    hook_in, hook_out: hook points of the coder's input and target, each one or a list, whose features stand side by
        side; without hook_out the target is the input
    split: "train" (shuffled), "heldout" or "all" (both in reading order)
    heldout: where nothing is streamed, the fraction of the sequences, from the end, that "train" leaves out;
        "python-stdlib" is split by file instead
    context_length: tokens in a sequence
    block_sequences: sequences read and mixed at a time
    forward_sequences: sequences that go through the language model at a time
    max_tokens: read no more than these, before the split
    seed: of the order of sequences and rows
    epochs: passes over the text; by default endless for "train", one otherwise
    dtype: "auto" (as stored), "float32", "bfloat16" or "float16"
    device: where the language model runs
    local_files_only: never ask the network
    revision: of a hub model; a list has one for each model
    """
    _check_text(text, dataset, stream, max_tokens)
    paths("model", model)
    one_of("split", split, ("train", "heldout", "all"))
    fraction(heldout=heldout)
    positive(context_length=context_length, shuffle_texts=shuffle_texts, heldout_characters=heldout_characters)
    points = [*listed("hook_in", hook_in), *(() if hook_out is None else listed("hook_out", hook_out))]
    models = _load(model, revision, points, dtype, device, local_files_only, context_length)
    train = split == "train"

    def read(sequences: Tensor, **options: int | None) -> TextSource:
        given = BlockOptions(
            block_sequences=block_sequences,
            forward_sequences=forward_sequences,
            shuffle=train,
            seed=seed,
            epochs=epochs if train or epochs else 1,
        )
        given.update(options)  # pyright: ignore[reportCallIssue, reportArgumentType]
        if len(models) > 1:
            return CrossModelActivations(models, sequences, hook_in, hook_out, **given)
        return TextActivations(models[0], sequences, hook_in, hook_out, **given)

    if dataset is None and not stream:
        assert text is not None
        texts = stdlib_texts(split) if text == STDLIB else read_texts(text)
        sequences = pack(models[0], texts, context_length, max_tokens)
        if text != STDLIB:
            chosen = split_range(len(sequences), split, heldout)
            sequences = sequences[chosen.start : chosen.stop]
        return read(sequences)

    def texts_again() -> Iterable[tuple[str, str]]:
        if dataset is None:
            assert text is not None
            return read_texts(text, PIECE)
        return dataset_texts(
            dataset,
            config=dataset_config,
            split=dataset_split,
            column=text_column,
            local_files_only=local_files_only,
        )

    def packed(texts: Iterable[tuple[str, str]]) -> Tensor:
        return pack(models[0], texts, context_length)

    if split == "heldout":
        return read(packed(leading(texts_again(), heldout_characters)))
    characters = _characters(models[0], texts_again, block_sequences * context_length)
    groups = TextStream(
        texts_again,
        characters,
        skip=heldout_characters if train else 0,
        buffer=shuffle_texts if train else 0,
        seed=seed,
        epochs=epochs if train or epochs else 1,
    )
    return StreamActivations(groups, packed, _one_block(read, seed))


def _one_block(read: Callable[..., TextSource], seed: int) -> Callable[[Tensor, int], TextSource]:
    """How a stream reads one of its blocks: all sequences of a group at once, mixed by a seed of their own."""

    def block(sequences: Tensor, index: int) -> TextSource:
        return read(sequences, block_sequences=len(sequences), seed=(seed << 32) + index, epochs=1)

    return block


def _characters(model: HuggingFaceModel, texts: Opener, tokens: int) -> int:
    """About how many characters hold so many tokens, from the first 100,000 of the texts."""
    start = list(leading(texts(), 100_000))
    if not start:
        raise AdapterError("no texts to read, expected some")
    read = sum(len(text) for _, text in start)
    return max(1, round(tokens * read / max(1, sum(len(model.tokenize(text)) + 1 for _, text in start))))


def _check_text(text: object, dataset: str | None, stream: bool, max_tokens: int | None) -> None:
    """Raise ArgumentError for keys that do not go together."""
    if (text is None) == (dataset is None):
        found = "neither" if text is None else "both"
        raise ArgumentError(f"text or dataset: found {found}, expected one of them")
    if text is not None:
        paths("text", text, f", or {STDLIB!r}")
    streamed = stream or dataset is not None
    if streamed and text == STDLIB:
        raise ArgumentError(f"stream = true, expected false for text = {STDLIB!r}")
    if streamed and max_tokens is not None:
        raise ArgumentError(f"max_tokens = {max_tokens}, expected none for a stream: training says how much it reads")


def _load(
    model: str | Path | list[str],
    revision: str | list[str] | None,
    points: list[str],
    dtype: str,
    device: str,
    local_files_only: bool,
    context_length: int,
) -> list[HuggingFaceModel]:
    """The models, once their hook points are known to exist, with one tokenizer."""
    names, revisions = _models(model, revision)
    for name, rev in zip(names, revisions, strict=True):
        check_points(name, points, local_files_only=local_files_only, revision=rev)
    models = [
        HuggingFaceModel.load(name, dtype=dtype, device=device, local_files_only=local_files_only, revision=rev)
        for name, rev in zip(names, revisions, strict=True)
    ]
    for name, other in zip(names, models, strict=True):
        _check_reads_like(models[0], other, name, context_length)
    return models


def check_points(model: str | Path, points: Iterable[str], *, local_files_only: bool, revision: str | None) -> None:
    """See, before any weights are read, that a model has the hook points: by its configuration alone, from which
    transformers builds its modules on the meta device. A model that it can't build so is checked when it runs.

    Raises:
        UnknownNameError: a module that the model does not have; names the nearest.
    """
    transformers = need("transformers")
    name = str(model)
    local = local_files_only or Path(name).is_dir()
    try:
        config = transformers.AutoConfig.from_pretrained(name, local_files_only=local, revision=revision)
        with torch.device("meta"):
            module = transformers.AutoModelForCausalLM.from_config(config)
    except Exception:  # whatever it is, loading the model meets it too, and says so
        return
    for point in points:
        hook_points.HookPoint.parse(point).resolve(module)


def _models(model: str | Path | list[str], revision: str | list[str] | None) -> tuple[list[str], list[str | None]]:
    """Names of the models and the revision of each."""
    names = [str(name) for name in (model if isinstance(model, (list, tuple)) else [model])]
    if not isinstance(revision, (list, tuple)):
        return names, [revision] * len(names)
    if len(revision) != len(names):
        raise ArgumentError(f"revision has {len(revision)} entries, model has {len(names)}: expected one for each")
    return names, list(revision)


def _check_reads_like(first: HuggingFaceModel, other: HuggingFaceModel, name: str, context_length: int) -> None:
    """Raise unless `other` takes the token ids that `first`'s tokenizer gives."""
    mine, theirs = first.tokenizer.get_vocab(), other.tokenizer.get_vocab()
    differ = sorted(token for token in mine.keys() | theirs.keys() if mine.get(token) != theirs.get(token))
    if differ:
        raise AdapterError(
            f"model {name!r}: {len(differ)} tokens have another id than in the first model, {differ[0]!r} say "
            f"({mine.get(differ[0])} there, {theirs.get(differ[0])} here); expected one tokenizer"
        )
    if first.tokenize(_PROBE).tolist() != other.tokenize(_PROBE).tolist():
        raise AdapterError(f"model {name!r} splits text into other tokens than the first; expected one tokenizer")
    if other.max_context is not None and context_length > other.max_context:
        raise ArgumentError(f"context_length = {context_length}, model {name!r} takes at most {other.max_context}")
