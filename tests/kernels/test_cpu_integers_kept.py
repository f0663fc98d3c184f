"""Copies of weights as integers: made when they are met again, bounded, and never used once the weights are others."""

from __future__ import annotations

import pytest
import torch
from support.screening import no_vnni
from torch import Tensor

from sae_kernels.kernels._screen import forget, integers, kept
from sae_kernels.kernels.linear_topk import cpu as linear_topk
from sae_kernels.kernels.linear_topk import cpu_int8

EVERYONE = torch.empty(0, dtype=torch.bool)


@pytest.fixture(autouse=True)
def _alone(cpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if no_vnni():
        pytest.skip("AVX-512 without VNNI")
    monkeypatch.setenv("SAE_KERNELS_SCREENING", "off")
    monkeypatch.setattr(kept, "counts", dict.fromkeys(kept.counts, 0))
    forget()


def used(W: Tensor, n: int = 20) -> bool:
    """Encode, and say whether the copy was used; the result is right either way."""
    before = kept.counts["used"]
    x = torch.randn(n, W.shape[1])
    values, indices = cpu_int8.run(x, W, None, [7], [False], [EVERYONE])
    truth = (x @ W.detach().float().mT).topk(7)
    assert torch.equal(indices.long().sort().values, truth.indices.sort().values)
    torch.testing.assert_close(values.sort().values, truth.values.sort().values, rtol=1e-5, atol=1e-3)
    return kept.counts["used"] > before


def test_made_when_met_again_and_used_from_then_on() -> None:
    W = torch.randn(410, 70)
    assert [used(W) for _ in range(4)] == [False, False, True, True]
    assert kept.counts == {"made": 1, "used": 2, "stale": 0}
    assert kept.kept_bytes() == 416 * (80 + 20)  # whole groups of 32 latents, whole vectors of 16 coordinates
    assert integers.Latents.bytes_of(W, 8) == kept.kept_bytes()


def test_16_bits_take_twice_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_int8, "INT8", integers.INT16)
    monkeypatch.setattr(cpu_int8, "widths", lambda m: integers.CERTAIN)
    W = torch.randn(410, 70)
    assert [used(W) for _ in range(4)] == [False, False, True, True]
    assert kept.kept_bytes() == integers.Latents.bytes_of(W, 16) == 416 * (160 + 20)


def test_beside_a_copy_in_bfloat16() -> None:
    W = torch.randn(400, 64)
    assert [kept.kept(W) is None for _ in range(2)] == [True, False]
    assert [used(W) for _ in range(3)] == [False, False, True]
    assert kept.kept_bytes() == 400 * (2 * 64 + 8) + 416 * (64 + 20)


def test_none_that_would_be_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    W = torch.randn(416, 64)
    monkeypatch.setenv("SAE_KERNELS_SCREEN_CACHE", str(416 * 84 - 1))
    assert not any(used(W, 300) for _ in range(3))
    monkeypatch.setenv("SAE_KERNELS_SCREEN_CACHE", str(416 * 84))
    assert [used(W) for _ in range(3)] == [False, False, True]


def test_others_are_made_when_the_weights_change() -> None:
    W = torch.randn(400, 64)
    assert [used(W) for _ in range(3)] == [False, False, True]
    W[3] = 100.0
    assert [used(W) for _ in range(3)] == [False, False, True]


@pytest.mark.parametrize("n", [1, 300])
def test_a_change_of_all_rows_behind_the_counter_is_seen(n: int) -> None:
    W = torch.randn(400, 64)
    assert [used(W, n) for _ in range(3)] == [False, False, True]
    W.data.mul_(1.01)
    assert not used(W, n)
    assert kept.counts["stale"] == 1


def test_a_row_that_contradicts_the_copy_frees_it() -> None:
    """Written behind the counter, where the sample does not look: it was a candidate, and is not what it was."""
    W = torch.randn(3000, 64)
    assert [used(W) for _ in range(3)] == [False, False, True]
    calls = next(iter(kept._met.values())).calls + 1
    row = 32 * ((calls + 40) % (-(-3000 // 32)))
    x = W[row : row + 1].clone()
    W.data[row] *= -1
    found = cpu_int8.run(x, W, None, [7], [False], [EVERYONE])
    truth = linear_topk.certain(x, W, None, [7], [False], [EVERYONE])
    assert all(torch.equal(a, b) for a, b in zip(found, truth, strict=True))
    assert kept.counts["stale"] == 1
    assert kept.kept_bytes() == 0
