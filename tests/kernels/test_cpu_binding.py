"""Arguments that random calls found the C++ backend to take wrongly, once."""

from __future__ import annotations

import pytest
import torch

from bench import cases
from sae_kernels.errors import ArgumentError, ShapeError

ops = torch.ops.sae_kernels


def test_no_rows_are_not_every_row(backend: str) -> None:
    """An empty tensor's pointer is null, which to C++ means every row."""
    param, exp_avg, exp_avg_sq = torch.ones(4, 3), torch.ones(4, 3), torch.ones(4, 3)
    rows, last_step = torch.empty(0, dtype=torch.int32), torch.zeros(4, dtype=torch.int64)
    state = [param, exp_avg, exp_avg_sq, torch.empty(0, 3), rows, last_step]
    lrs = torch.ones(5, dtype=torch.float64)
    ops.adam_rows(*state, lrs, 5, 0.9, 0.99, 1e-8, False, False, backend=backend)
    assert all(torch.equal(t, torch.ones(4, 3)) for t in (param, exp_avg, exp_avg_sq))
    assert torch.equal(last_step, torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize("screening", ["on", "off"])
def test_a_dictionary_of_no_latents(cpu: str, screening: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAE_KERNELS_SCREENING", screening)
    x, W, theta = torch.ones(3, 4), torch.ones(0, 4), torch.tensor(0.5)
    values, indices = ops.linear_topk(x, W, None, [0], [True], [cases.everyone()], backend=cpu)
    assert values.shape == indices.shape == (3, 0)
    for found in (
        ops.linear_threshold(x, W, None, theta, backend=cpu),
        ops.linear_batch_topk(x, W, None, 0, True, backend=cpu),
    ):
        assert found[0].numel() == found[1].numel() == 0
        assert found[2].tolist() == [0, 0, 0, 0]


def test_too_large_a_k_is_refused_before_memory_is_asked_for(cpu: str) -> None:
    x = torch.ones(3, 4)
    with pytest.raises(ShapeError, match="k = 4611686018427387904, expected 0 <= k <= 4"):
        ops.topk(x, 1 << 62, backend=cpu)
    with pytest.raises(ShapeError, match="count = 16, expected 0 <= count <= 15"):
        ops.linear_batch_topk(x, torch.ones(5, 4), None, 16, True, backend=cpu)
    with pytest.raises(ShapeError, match="count = 1, expected 0 <= count <= 0"):
        ops.linear_batch_topk(x[:0], torch.ones(5, 4), None, 1, True, backend=cpu)
    with pytest.raises(ShapeError, match="indices are int32"):
        ops.transpose(torch.zeros(3, 2, dtype=torch.int32), None, (1 << 63) - 1, backend=cpu)


@pytest.mark.parametrize("first", [-1, (1 << 63) - 2])
def test_tokens_have_numbers(cpu: str, first: int) -> None:
    held = torch.full((5, 2), -torch.inf), torch.full((5, 2), -1)
    codes = torch.ones(3, 2), torch.zeros(3, 2, dtype=torch.int32)
    with pytest.raises(ArgumentError, match="first_token"):
        ops.latent_topn(*held, *codes, None, first, backend=cpu)


def test_no_prefixes(backend: str) -> None:
    codes = torch.ones(3, 2), torch.zeros(3, 2, dtype=torch.int32)
    assert ops.prefix_decode(*codes, None, torch.ones(5, 4), [], backend=backend).shape == (0, 3, 4)


def test_more_latents_than_int32_can_count(backend: str) -> None:
    codes = torch.ones(3, 2), torch.zeros(3, 2, dtype=torch.int32)
    assert ops.spmm_t(*codes, None, torch.ones(3, 0), 1 << 62, backend=backend).shape == (1 << 62, 0)
