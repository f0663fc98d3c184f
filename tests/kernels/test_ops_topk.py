"""`topk`: the rule exactly (NaN, then descending, ties to the smaller index), for every kind of score."""

from __future__ import annotations

import pytest
import torch
from support.compare import assert_same, assert_top_k_exact

from bench import cases

ops = torch.ops.sae_kernels


@pytest.mark.parametrize("k", [1, 5, 64, 300])
@pytest.mark.parametrize("kind", cases.SCORES)
def test_every_kind_of_score(backend: str, dtype: torch.dtype, kind: str, k: int) -> None:
    scores = cases.scores(kind, 6, 300, dtype)
    assert_top_k_exact(*ops.topk(scores, k, backend=backend), scores)


@pytest.mark.parametrize(
    ("n", "m", "k"),
    [
        (0, 5, 2),
        (1, 1, 1),
        (3, 2, 2),
        (2, 17, 16),
        (4, 33, 1),
        (2, 4097, 100),
        (1, 9000, 4500),
        (2, 1021, 1021),
    ],
)
@pytest.mark.parametrize("kind", ["normal", "ties", "nan_inf"])
def test_every_shape(backend: str, dtype: torch.dtype, kind: str, n: int, m: int, k: int) -> None:
    scores = cases.scores(kind, n, m, dtype)
    assert_top_k_exact(*ops.topk(scores, k, backend=backend), scores)


@pytest.mark.parametrize("ordered", ["ascending", "descending", "equal", "ties"])
def test_long_rows_in_bad_orders(backend: str, dtype: torch.dtype, ordered: str) -> None:
    scores = cases.scores(ordered, 2, 20_000, dtype)
    assert_top_k_exact(*ops.topk(scores, 33, backend=backend), scores)


def test_nan_of_either_sign_and_any_payload_are_equal(backend: str) -> None:
    bits = torch.tensor(
        [[0x7FC00000, 0x3F800000, 0xFFC00000 - 2**32, 0x7F800001, 0xFF800001 - 2**32, 0x7F800000]],
        dtype=torch.int64,
    )
    scores = bits.int().view(torch.float32)
    assert sorted(ops.topk(scores, 3, backend=backend)[1][0].tolist()) == [0, 2, 3]


def test_denormals_count(backend: str) -> None:
    scores = torch.tensor([[0.0, 1e-40, -1e-40, 2e-40]])
    assert sorted(ops.topk(scores, 2, backend=backend)[1][0].tolist()) == [1, 3]


def test_values_keep_the_sign_of_zero(backend: str) -> None:
    scores = torch.tensor([[-0.0, -1.0, 0.0]])
    values, indices = ops.topk(scores, 1, backend=backend)
    assert indices.item() == 0
    assert values.signbit().item()


def test_backends_agree_on_the_set(cpu: str, dtype: torch.dtype) -> None:
    scores = cases.scores("normal", 16, 5000, dtype)
    mine, theirs = ops.topk(scores, 50, backend=cpu)[1], ops.topk(scores, 50, backend="reference")[1]
    assert_same(mine.sort(1).values, theirs.sort(1).values)


def test_gradient_goes_where_the_values_came_from(backend: str, dtype: torch.dtype) -> None:
    scores = cases.scores("ties", 4, 30, dtype).requires_grad_()
    values, indices = ops.topk(scores, 5, backend=backend)
    assert not indices.requires_grad
    weights = cases.normal(4, 5, dtype=dtype)
    (values * weights).sum().backward()
    expected = torch.zeros(4, 30, dtype=dtype).scatter(1, indices.long(), weights)
    assert_same(scores.grad, expected)  # pyright: ignore[reportArgumentType]


def test_gradcheck_of_the_reference() -> None:
    scores = cases.normal(3, 9, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: ops.topk(s, 4)[0], (scores,))
