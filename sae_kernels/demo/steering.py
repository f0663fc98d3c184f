"""Which latent to steer with, and the text before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..adapters import LanguageSource
from ..architectures import SparseCoder
from ..features import FeatureTable
from ..steer import Clamp, steer


@dataclass(frozen=True)
class Steered:
    """One latent clamped: how often its own tokens are written, and a continuation, without it and with it."""

    latent: int
    strength: float
    share_before: float
    share_after: float
    before: str
    after: str


def own_tokens(table: FeatureTable, source: LanguageSource, latent: int) -> set[int]:
    """The tokens a latent is strongest on, and the ones that come next: what steering with it should bring about."""
    assert table.sequence is not None
    assert table.position is not None
    found = set()
    for sequence, position in zip(table.sequence[latent].tolist(), table.position[latent].tolist(), strict=True):
        if position >= 0:
            found |= set(source.sequences[sequence, position : position + 2].tolist())
    return found - set(source.model.special_ids)


def demonstrate(
    source: LanguageSource,
    coder: SparseCoder,
    table: FeatureTable,
    latents: Sequence[int],
    prompt: str,
    *,
    times: float,
    n_tokens: int,
    seed: int,
) -> Steered:
    """Clamp each of `latents` to `times` its largest activation and continue the prompt; the one that raises the share
    of its own tokens most."""
    model = source.model

    def continuation() -> str:
        return model.generate(prompt, n_tokens, seed=seed, temperature=0.7)

    def share(text: str, tokens: set[int]) -> float:
        ids = model.tokenize(text).tolist()
        return sum(token in tokens for token in ids) / max(len(ids), 1)

    before = continuation()
    outcomes = []
    for latent in latents:
        edit = Clamp.times_max(latent, float(table.max_activation[latent]), times)
        with steer(model, coder, source.hook_out, edit):
            after = continuation()
        own = own_tokens(table, source, latent)
        outcomes.append(Steered(latent, edit.value, share(before, own), share(after, own), before, after))
    return max(outcomes, key=lambda each: each.share_after - each.share_before)
