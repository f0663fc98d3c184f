"""`latent_topn`: the best tokens of each latent, kept up to date by a stream of codes."""

from __future__ import annotations

import pytest
import torch
from support import dense
from support.compare import assert_same
from torch import Tensor

from bench import cases

ops = torch.ops.sae_kernels
BIG = pytest.mark.big


def empty(d_sae: int, n: int) -> tuple[Tensor, Tensor]:
    return torch.full((d_sae, n), -float("inf")), torch.full((d_sae, n), -1, dtype=torch.int64)


def truth(batches: list[tuple[Tensor, Tensor, Tensor | None, int]], d_sae: int, n: int) -> tuple[list, list]:
    """Plain Python: all (value, token) of a latent, sorted by value descending, then the earlier token."""
    seen: list[list[tuple[float, int]]] = [[] for _ in range(d_sae)]
    for values, indices, offsets, first in batches:
        rows = dense.row_of_slots(indices, offsets).tolist()
        for value, latent, row in zip(values.flatten().tolist(), indices.flatten().tolist(), rows, strict=True):
            if value != 0 and value == value:
                seen[latent].append((-value, first + row))
    kept = [sorted(each)[:n] + [(float("inf"), -1)] * (n - len(each)) for each in seen]
    return [[-v for v, _ in each] for each in kept], [[t for _, t in each] for each in kept]


@pytest.mark.parametrize("ragged", [False, True], ids=["fixed", "ragged"])
@pytest.mark.parametrize("draw", ["uniform", "one_latent", *(pytest.param(d, marks=BIG) for d in ("zipf", "hot"))])
@pytest.mark.parametrize("n", [1, pytest.param(3, marks=BIG), 20])
def test_a_stream_of_batches(backend: str, dtype: torch.dtype, draw: str, n: int, ragged: bool) -> None:
    size = cases.Size(19, 1, 40, 5)
    best_values, best_tokens = empty(size.d_sae, n)
    batches, first = [], 10**12  # tokens are 64 bits
    for seed in range(3):
        values, indices, offsets = cases.codes(size, dtype, draw, ragged=ragged, seed=seed).flat()
        ops.latent_topn(best_values, best_tokens, values, indices, offsets, first, backend=backend)
        batches.append((values, indices, offsets, first))
        first += size.n
    expected_values, expected_tokens = truth(batches, size.d_sae, n)
    assert best_values.tolist() == expected_values
    assert best_tokens.tolist() == expected_tokens


def test_ties_go_to_the_earlier_token_and_nan_is_skipped(backend: str) -> None:
    best_values, best_tokens = empty(2, 3)
    values = torch.tensor([[2.0], [2.0], [float("nan")], [0.0], [2.0], [2.0], [float("inf")]])
    indices = torch.zeros(7, 1, dtype=torch.int32)
    ops.latent_topn(best_values, best_tokens, values, indices, None, 0, backend=backend)
    assert best_values[0].tolist() == [float("inf"), 2, 2]
    assert best_tokens.tolist() == [[6, 0, 1], [-1, -1, -1]]


def test_a_real_minus_infinity_comes_before_an_unused_entry(backend: str) -> None:
    best_values, best_tokens = empty(1, 3)
    values = torch.tensor([[-float("inf")], [1.0]])
    ops.latent_topn(best_values, best_tokens, values, torch.zeros(2, 1, dtype=torch.int32), None, 7, backend=backend)
    assert best_tokens.tolist() == [[8, 7, -1]]


def test_nothing_new_changes_nothing(backend: str) -> None:
    best_values, best_tokens = empty(4, 2)
    best_values[1, 0], best_tokens[1, 0] = 3.0, 9
    before = best_values.clone(), best_tokens.clone()
    ops.latent_topn(
        best_values,
        best_tokens,
        torch.zeros(0, 3),
        torch.zeros(0, 3, dtype=torch.int32),
        None,
        50,
        backend=backend,
    )
    assert_same(best_values, before[0])
    assert_same(best_tokens, before[1])
