from __future__ import annotations

import pytest
import torch
from support.tiny_lm import tiny_source

import sae_kernels as sk
from sae_kernels.errors import ArgumentError
from sae_kernels.features import FeatureTable, interesting, top_activations


def table(rows: list[tuple[list[float], float, int]], ids: list[int] | None = None) -> FeatureTable:
    """Latents by (best values, mean when active, firings) among 1000 tokens; each has tokens of its own."""
    n = max(len(best) for best, _, _ in rows)
    values, tokens = torch.full((len(rows), n), -torch.inf), torch.full((len(rows), n), -1)
    for i, (best, _, _) in enumerate(rows):
        values[i, : len(best)] = torch.tensor(best)
        tokens[i, : len(best)] = torch.arange(100 * i, 100 * i + len(best))
    firings = torch.tensor([firings for _, _, firings in rows])
    sums = torch.tensor([mean for _, mean, _ in rows], dtype=torch.float64) * firings
    labels = None if ids is None else torch.tensor(ids)[:, None].expand(-1, n)
    return FeatureTable(values, tokens, firings, sums, 1000, labels)


PEAKY = ([9.0, 8.0, 7.0], 1.0, 10)
FLAT = ([2.0, 2.0, 2.0], 2.0, 15)
DENSE = ([90.0, 80.0, 70.0], 1.0, 500)
DEAD = ([], 0.0, 0)
RARE = ([50.0], 50.0, 1)


def test_neither_dead_nor_dense_and_the_peaky_first() -> None:
    assert interesting(table([DEAD, FLAT, DENSE, PEAKY, RARE])) == [3, 1]


def test_ties_go_to_the_smaller_latent() -> None:
    assert interesting(table([PEAKY] * 4), 3) == [0, 1, 2]


def test_distinct_ones_first() -> None:
    better = ([9.5, 8.5, 7.5], 1.0, 9)
    assert interesting(table([PEAKY, FLAT, better], ids=[7, 8, 7])) == [2, 1, 0], "two of the same token"
    same = table([PEAKY, FLAT, better])
    same.tokens[0] = same.tokens[2]
    assert interesting(same) == [2, 1, 0], "two on the same places"


def test_fewer_than_asked_for() -> None:
    assert interesting(table([DEAD, DENSE])) == []
    assert interesting(table([DEAD, DENSE]), max_density=1.0) == [1]


def test_on_real_codes_it_is_deterministic() -> None:
    sae = sk.create("topk", d_in=16, d_sae=64, k=4, seed=0)
    found = top_activations(sae, tiny_source())
    picks = interesting(found, 6, max_density=0.2)
    assert picks == interesting(top_activations(sae, tiny_source(), batch_tokens=50), 6, max_density=0.2)
    assert len(set(picks)) == len(picks) == 6


def test_bad_arguments() -> None:
    for keys in (
        {"n": 0},
        {"min_firings": 0},
        {"max_density": 0},
        {"max_density": float("nan")},
        {"max_density": 2},
    ):
        with pytest.raises(ArgumentError, match=next(iter(keys))):
            interesting(table([PEAKY]), **keys)
