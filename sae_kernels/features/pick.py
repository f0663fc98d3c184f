"""`interesting`: latents worth showing first."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..evaluate.stream import check_count
from .table import FeatureTable


def interesting(table: FeatureTable, n: int = 10, *, min_firings: int = 5, max_density: float = 0.02) -> list[int]:
    """At most n latents, best first: neither dead nor dense, strong, peaky, and unlike one another.

    Of the latents that fired at least `min_firings` times, on at most `max_density` of the tokens, each is
    ranked by the strength of its best tokens (their mean), by peakiness (that mean over its mean when
    active) and by rarity; the smallest sum of ranks comes first, ties by the smaller latent. One whose
    strongest token has the same id as a chosen one's, or that shares over half of its best tokens with one,
    waits until the others are used up.

    Raises:
        ArgumentError: n or min_firings below 1, max_density outside (0, 1].
    """
    check_count(n=n, min_firings=min_firings)
    if not 0 < max_density <= 1:
        raise ArgumentError(f"max_density = {max_density!r}, expected a fraction, at most 1")
    candidates = ((table.firings >= min_firings) & (table.density <= max_density)).nonzero().flatten()
    used = table.tokens[candidates] >= 0
    best = torch.where(used, table.values[candidates], 0.0).double().sum(1) / used.sum(1).clamp(min=1)
    score = _ranks(-best) + _ranks(-best / table.mean_active[candidates]) + _ranks(table.density[candidates])
    ordered = candidates[torch.sort(score, stable=True).indices].tolist()

    chosen: list[int] = []
    waiting: list[int] = []
    for latent in ordered:
        if len(chosen) == n:
            break
        (waiting if any(_alike(table, latent, other) for other in chosen) else chosen).append(latent)
    return [*chosen, *waiting][:n]


def _ranks(keys: Tensor) -> Tensor:
    """Place of each key in ascending order; equal keys share one."""
    return torch.unique(keys, return_inverse=True)[1]


def _alike(table: FeatureTable, one: int, other: int) -> bool:
    if table.ids is not None and table.ids[one, 0] == table.ids[other, 0]:
        return True
    a, b = ({token for token in table.tokens[latent].tolist() if token >= 0} for latent in (one, other))
    return 2 * len(a & b) > min(len(a), len(b))
