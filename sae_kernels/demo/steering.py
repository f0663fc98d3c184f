"""Which latent to steer with, what it does to the next token, and the text before and after."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..adapters import LanguageModel, LanguageSource
from ..architectures import SparseCoder
from ..features import FeatureTable
from ..steer import Clamp, steer


@dataclass(frozen=True)
class Promoted:
    """A token, and its mean probability as the next one without and with the latent clamped."""

    token: str
    before: float
    after: float


@dataclass(frozen=True)
class Steered:
    """One latent clamped: the tokens it promotes, and a continuation without it and with it."""

    edit: Clamp
    promoted: list[Promoted]
    before: str
    after: str


def candidates(table: FeatureTable, n: int = 16) -> list[int]:
    """Strong latents that are neither rare nor dense: those change more than one word."""
    common = ((table.density >= 0.01) & (table.density <= 0.06)).nonzero().flatten()
    if not len(common):
        common = table.firings.argsort(descending=True)[:n]
    return common[table.mean_active[common].argsort(descending=True, stable=True)][:n].tolist()


def _mean_next_token(model: LanguageModel, ids: Tensor) -> Tensor:
    """Probability of each token as the next one, averaged over the positions of some text."""
    return model.logits(ids).double().softmax(-1).mean(0)


def _promoted(model: LanguageModel, plain: Tensor, steered: Tensor, n: int = 5) -> list[Promoted]:
    """The n words that gained most probability; pieces of words and punctuation would say little to a reader."""
    found = []
    for token in (steered - plain).topk(50).indices:
        text = model.detokenize(token.reshape(1))
        if len(text.strip()) >= 3 and text.strip().isalpha():
            found.append(Promoted(text, float(plain[token]), float(steered[token])))
    return found[:n]


def demonstrate(
    source: LanguageSource,
    coder: SparseCoder,
    table: FeatureTable,
    prompt: str,
    *,
    times: float = 1.5,
    n_tokens: int = 64,
    seed: int = 0,
) -> Steered:
    """Clamp each candidate to `times` its largest activation while the model reads a held-out text; with the one that
    makes five words most likelier on average, and still lets the model write more than one of them, continue the
    prompt."""
    model, text = source.model, source.sequences[0].long()
    plain = _mean_next_token(model, text)
    outcomes: list[tuple[float, Clamp, list[Promoted]]] = []
    for latent in candidates(table):
        edit = Clamp.times_max(latent, float(table.max_activation[latent]), times)
        with steer(model, coder, source.hook_out, edit):
            promoted = _promoted(model, plain, _mean_next_token(model, text))
        outcomes.append((sum(each.after - each.before for each in promoted), edit, promoted))
    before = model.generate(prompt, n_tokens, seed=seed, temperature=0.7)
    steered = []
    for _, edit, promoted in sorted(outcomes, key=lambda outcome: -outcome[0]):
        with steer(model, coder, source.hook_out, edit):
            after = model.generate(prompt, n_tokens, seed=seed, temperature=0.7)
        steered.append(Steered(edit, promoted, before, after))
        if _variety(model, after) >= 0.7 * _variety(model, before):
            return steered[-1]
    return steered[0]


def _variety(model: LanguageModel, text: str) -> int:
    """Distinct tokens: few of them are what too strong a push sounds like."""
    return len(set(model.tokenize(text).tolist()))
