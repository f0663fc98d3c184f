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
from ._checks import need, one_of, positive
from .hook_points import Replace
from .read_ahead import Take, read_ahead

_DTYPES = ("auto", "float32", "bfloat16", "float16")


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

    def read_ahead(self, points: Iterable[str], take: Take) -> AbstractContextManager[None]:
        """See `read_ahead.read_ahead`. While generating, the passes ahead keep a cache of their own."""
        return read_ahead(self.module, list(points), take)

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
