"""Which latent to steer with, and the text before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..adapters import LanguageModel
from ..architectures import SparseCoder
from ..features import FeatureTable
from ..steer import Clamp, steer


@dataclass(frozen=True)
class Steered:
    """One latent clamped: what it makes likelier, and a continuation with and without it."""

    latent: int
    strength: float
    promoted: list[str]
    before: str
    after: str


def _next_token_probabilities(model: LanguageModel, ids: Tensor) -> Tensor:
    return model.logits(ids)[-1].float().softmax(0)


def strongest(
    model: LanguageModel,
    coder: SparseCoder,
    point: str,
    table: FeatureTable,
    latents: Sequence[int],
    prompt: str,
    times: float,
) -> tuple[int, list[str]]:
    """The latent whose clamping moves the next token's distribution most (total variation), and the tokens it
    promotes."""
    ids = model.tokenize(prompt)
    plain = _next_token_probabilities(model, ids)
    best, promoted, moved = latents[0], [], -1.0
    for latent in latents:
        with steer(model, coder, point, Clamp.times_max(latent, float(table.max_activation[latent]), times)):
            change = _next_token_probabilities(model, ids) - plain
        if float(change.abs().sum()) > moved:
            best, moved = latent, float(change.abs().sum())
            promoted = [model.detokenize(token.reshape(1)) for token in change.topk(5).indices]
    return best, promoted


def demonstrate(
    model: LanguageModel,
    coder: SparseCoder,
    point: str,
    table: FeatureTable,
    latents: Sequence[int],
    prompt: str,
    *,
    times: float = 2.0,
    n_tokens: int = 40,
    seed: int = 0,
) -> Steered:
    """Clamp the most effective of `latents` to `times` its largest activation, and continue the prompt both ways."""
    latent, promoted = strongest(model, coder, point, table, latents, prompt, times)
    edit = Clamp.times_max(latent, float(table.max_activation[latent]), times)
    before = model.generate(prompt, n_tokens, seed=seed, temperature=0.7)
    with steer(model, coder, point, edit):
        after = model.generate(prompt, n_tokens, seed=seed, temperature=0.7)
    return Steered(latent, edit.value, promoted, before, after)
