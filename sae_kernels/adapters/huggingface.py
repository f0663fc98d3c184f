"""Hugging Face causal language models, read and steered by hook point."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..errors import AdapterError, ArgumentError, describe
from . import hook_points
from ._checks import need, one_of, paths, positive
from ._order import Split, split_range
from .hook_points import Replace, listed
from .text_activations import BlockOptions, CrossModelActivations, TextActivations, pack
from .texts import STDLIB, read_texts, stdlib_texts

_DTYPES = ("auto", "float32", "bfloat16", "float16")
_PROBE = 'def naïve(x1):\n    return "The quick brown fox", 3.14159  # unbelievably, 数\n'  # many kinds of token


class HuggingFaceModel:
    """A `LanguageModel`: a transformers causal model (`.module`, put in eval mode) and its tokenizer."""

    def __init__(self, module: torch.nn.Module, tokenizer: Any) -> None:
        self.module: Any = module.eval()
        self.tokenizer = tokenizer
        self.special_ids = frozenset[int](tokenizer.all_special_ids)
        self.bos_id: int | None = tokenizer.bos_token_id
        self.eos_id: int | None = tokenizer.eos_token_id
        self.max_context: int | None = getattr(self.module.config, "max_position_embeddings", None)
        self._d: dict[str, int] = {}

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        dtype: str = "auto",
        device: str = "cpu",
        local_files_only: bool = False,
        revision: str | None = None,
    ) -> HuggingFaceModel:
        """Open a local folder or a hub id. A folder never asks the network.

        `dtype`: float32, bfloat16, float16, or auto (as the weights are stored).

        Raises:
            AdapterError: transformers is missing, or there is no such model; says what transformers found
                wrong.
            ArgumentError: an unknown dtype.
        """
        one_of("dtype", dtype, _DTYPES)
        transformers = need("transformers")
        name = str(model)
        local = local_files_only or Path(name).is_dir()
        options: dict[str, Any] = {"local_files_only": local, "revision": revision}
        try:
            with _quiet(transformers):
                tokenizer = transformers.AutoTokenizer.from_pretrained(name, **options)
                module, loading = transformers.AutoModelForCausalLM.from_pretrained(
                    name, dtype=dtype, output_loading_info=True, **options
                )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:  # files missing or foreign
            raise AdapterError(f"model {name!r} can't be opened as a causal language model: {error}") from error
        if missing := sorted(loading["missing_keys"]):  # transformers fills them at random
            raise AdapterError(f"model {name!r}: weights without {len(missing)} tensors: {', '.join(missing[:5])}")
        return cls(module.to(device), tokenizer)

    def tokenize(self, text: str) -> Tensor:
        """Token ids of a text, (tokens,) int64 on the CPU, without special tokens added."""
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return torch.tensor(ids, dtype=torch.int64)

    def detokenize(self, ids: Tensor) -> str:
        """Text of (tokens,) ids, special tokens included."""
        return self.tokenizer.decode(ids.tolist(), clean_up_tokenization_spaces=False)

    @torch.no_grad()
    def logits(self, ids: Tensor) -> Tensor:
        """Next-token scores, (…, tokens, vocabulary), in the model's dtype."""
        out = self.module(input_ids=self._batch(ids), use_cache=False).logits
        return out if ids.ndim == 2 else out[0]

    @torch.no_grad()
    def activations(self, ids: Tensor, points: Iterable[str]) -> dict[str, Tensor]:
        """What passes each hook point; the model is left once all have been seen."""
        points, batch = list(points), self._batch(ids)
        if not points:
            return {}
        with hook_points.capture(self.module, points, stop_early=True) as seen:
            self.module(input_ids=batch, use_cache=False)
        return seen if ids.ndim == 2 else {point: activation[0] for point, activation in seen.items()}

    def intervene(self, replace: Mapping[str, Replace]) -> AbstractContextManager[None]:
        """See `hook_points.intervene`. While generating, the prompt comes first, then one token at a time."""
        return hook_points.intervene(self.module, replace)

    @torch.no_grad()
    def generate(self, prompt: str, n_tokens: int, *, seed: int = 0, temperature: float = 1.0) -> str:
        """The continuation alone. Ends early at the end-of-text token. The global random state is left alone.

        Raises:
            ArgumentError: n_tokens < 1, a negative temperature, or more tokens in all than the model takes.
        """
        positive(n_tokens=n_tokens)
        if not temperature >= 0:
            raise ArgumentError(f"temperature = {temperature!r}, expected a number >= 0")
        start = [] if self.bos_id is None else [self.bos_id]
        ids = self._batch(torch.cat([torch.tensor(start).long(), self.tokenize(prompt)]), n_tokens)
        random = torch.Generator(ids.device).manual_seed(seed)
        new: list[int] = []
        past: dict[str, Any] = {}
        for _ in range(n_tokens):
            out = self.module(input_ids=ids, use_cache=True, **past)
            token = _sample(out.logits[0, -1].float(), temperature, random)
            if int(token) == self.eos_id:
                break
            new.append(int(token))
            if (cache := out.get("past_key_values")) is not None:
                past, ids = {"past_key_values": cache}, token.view(1, 1)
            else:  # a model without a cache of this kind (Mamba, say) reads it all again
                ids = torch.cat([ids, token.view(1, 1)], dim=1)
        return self.detokenize(torch.tensor(new, dtype=torch.int64))

    def d_of(self, point: str) -> int:
        """Features at a hook point, found by sending one token through."""
        if point not in self._d:
            self._d[point] = self.activations(torch.zeros(1, 1, dtype=torch.int64), [point])[point].shape[-1]
        return self._d[point]

    def _batch(self, ids: Tensor, more: int = 0) -> Tensor:
        """`ids` as (sequences, tokens) on the model's device, checked before they index an embedding."""
        if ids.ndim not in (1, 2) or ids.is_floating_point() or ids.numel() == 0:
            raise ArgumentError(f"ids {describe(ids)}, expected (tokens,) or (sequences, tokens), not empty")
        length = ids.shape[-1] + more
        if self.max_context is not None and length > self.max_context:
            raise ArgumentError(f"{length} tokens in a sequence, the model takes at most {self.max_context}")
        vocabulary = self.module.get_input_embeddings().num_embeddings
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= vocabulary:
            raise ArgumentError(f"token ids from {low} to {high}, expected 0 to {vocabulary - 1}")
        return ids.view(-1, ids.shape[-1]).to(self.module.device, torch.int64)


def open_source(
    *,
    model: str | Path | list[str],
    text: str | Path | list[str],
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
) -> TextActivations | CrossModelActivations:
    """The `[activations]` table of a training configuration with `adapter = "huggingface"`.

    model: folder or hub id of a causal language model; a list of them (one tokenizer): hook points are read from each,
        and stand side by side
    text: a text file, a .jsonl file ({"text": …} a line), a folder, a list of these, or "python-stdlib"
    hook_in, hook_out: hook points of the coder's input and target, each one or a list, whose features stand side by
        side; without hook_out the target is the input
    split: "train" (shuffled), "heldout" or "all" (both in reading order)
    heldout: fraction of the sequences, from the end, that "train" leaves out; "python-stdlib" is split by
        file instead
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
    paths("text", text, f", or {STDLIB!r}")
    paths("model", model)
    one_of("split", split, ("train", "heldout", "all"))
    points = [*listed("hook_in", hook_in), *(() if hook_out is None else listed("hook_out", hook_out))]
    names, revisions = _models(model, revision)
    for name, rev in zip(names, revisions, strict=True):
        check_points(name, points, local_files_only=local_files_only, revision=rev)
    models = [
        HuggingFaceModel.load(name, dtype=dtype, device=device, local_files_only=local_files_only, revision=rev)
        for name, rev in zip(names, revisions, strict=True)
    ]
    for name, other in zip(names, models, strict=True):
        _check_reads_like(models[0], other, name, context_length)
    texts = stdlib_texts(split) if text == STDLIB else read_texts(text)
    sequences = pack(models[0], texts, context_length, max_tokens)
    if text != STDLIB:
        chosen = split_range(len(sequences), split, heldout)
        sequences = sequences[chosen.start : chosen.stop]
    train = split == "train"
    options = BlockOptions(
        block_sequences=block_sequences,
        forward_sequences=forward_sequences,
        shuffle=train,
        seed=seed,
        epochs=epochs if train or epochs else 1,
    )
    if len(models) > 1:
        return CrossModelActivations(models, sequences, hook_in, hook_out, **options)
    return TextActivations(models[0], sequences, hook_in, hook_out, **options)


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


def _sample(logits: Tensor, temperature: float, random: torch.Generator) -> Tensor:
    if temperature == 0:
        return logits.argmax()
    return torch.multinomial(torch.softmax((logits - logits.max()) / temperature, dim=-1), 1, generator=random)[0]


@contextmanager
def _quiet(transformers: Any) -> Generator[None]:
    """Without transformers' progress bar for loading weights, which small models only flash."""
    logging = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
