"""Copies of weights that screening keeps: used while the weights stay what they are, and never after."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sae_kernels.errors import ConfigError
from sae_kernels.kernels._screen import forget, kept
from sae_kernels.kernels.linear_topk import cpu as linear_topk
from sae_kernels.kernels.linear_topk import screened
from sae_kernels.kernels.linear_topk.problem import Problem

ops = torch.ops.sae_kernels


@pytest.fixture(autouse=True)
def _alone(cpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAE_KERNELS_SCREENING", "on")
    monkeypatch.setattr(kept, "counts", dict.fromkeys(kept.counts, 0))
    forget()


def weights(m: int = 400) -> Tensor:
    return torch.randn(m, 64)


def used(W: Tensor) -> bool:
    """Encode, and say whether a copy was used; the result is right either way."""
    before = kept.counts["used"]
    x = torch.randn(20, 64)
    (values, indices), done = screened.run(Problem(x, W, None, [7], [False], [None]))
    assert done == 20
    truth = (x @ W.detach().float().mT).topk(7)
    assert torch.equal(indices.long().sort().values, truth.indices.sort().values)
    torch.testing.assert_close(values.sort().values, truth.values.sort().values, rtol=1e-5, atol=1e-3)
    return kept.counts["used"] > before


def test_made_when_met_again_and_used_from_then_on() -> None:
    W = weights()
    assert [used(W) for _ in range(4)] == [False, False, True, True]
    assert kept.counts == {"made": 1, "used": 2, "stale": 0}
    assert kept.kept_bytes() == 400 * (2 * 64 + 8)
    forget()
    assert kept.kept_bytes() == 0
    assert not used(W)


def test_a_view_of_the_same_weights_is_the_same() -> None:
    W = weights()
    assert [used(each) for each in (W, W.detach(), W.view(400, 64), W[:])] == [False, False, True, True]
    assert not used(W[:200])
    assert not used(W[200:])
    assert used(W)


def _by_hand(W: Tensor) -> None:
    W.mul_(1.5)


def _by_row(W: Tensor) -> None:
    W[3] = 100.0


def _by_fused_adam(W: Tensor) -> None:
    W.grad = torch.randn_like(W)
    torch.optim.Adam([W], lr=0.1, fused=True).step()


def _by_adam_rows(W: Tensor) -> None:
    rows, lrs = torch.arange(5).int(), torch.ones(1, dtype=torch.float64)
    ops.adam_rows(W, W * 0, W * 0, torch.randn(5, 64), rows, None, lrs, 1, 0.9, 0.999, 1e-8, True, True, backend="cpu")


def _in_inference_mode(W: Tensor) -> None:
    with torch.inference_mode():
        W.add_(1)


def _behind_the_counter(W: Tensor) -> None:
    W.data[17] = torch.randn(64) * 100


def _through_numpy(W: Tensor) -> None:
    W.detach().numpy()[:] *= 2


@pytest.mark.parametrize(
    "change",
    [_by_hand, _by_row, _by_fused_adam, _by_adam_rows, _in_inference_mode, _behind_the_counter, _through_numpy],
)
def test_never_used_after_a_change(change) -> None:
    W = weights().requires_grad_()
    with torch.no_grad():
        assert [used(W) for _ in range(3)] == [False, False, True]
        change(W)
        assert not used(W)
        assert [used(W) for _ in range(2)][-1]


def test_a_freed_tensor_is_forgotten_and_its_address_means_nothing() -> None:
    for _ in range(5):
        W = weights()
        assert [used(W) for _ in range(3)] == [False, False, True]
        del W
    assert not used(weights(300))  # meeting others drops the dead
    assert kept.kept_bytes() == 0


def test_memory_is_bounded_and_the_one_unused_longest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    each = 400 * (2 * 64 + 8)
    monkeypatch.setenv("SAE_KERNELS_SCREEN_CACHE", str(2 * each))
    a, b, c = (weights() for _ in range(3))
    for W in (a, b):
        assert [used(W) for _ in range(3)] == [False, False, True]
    assert used(a)
    assert [used(c) for _ in range(3)] == [False, False, True]
    assert kept.kept_bytes() == 2 * each
    assert used(a)
    assert not used(b)
    monkeypatch.setenv("SAE_KERNELS_SCREEN_CACHE", str(each - 1))
    assert not used(a)
    for wrong in ("-1", "much", "1e9"):
        monkeypatch.setenv("SAE_KERNELS_SCREEN_CACHE", wrong)
        with pytest.raises(ConfigError, match=f"SAE_KERNELS_SCREEN_CACHE={wrong}, expected a number of bytes"):
            used(a)


def test_many_tensors_met() -> None:
    for W in [weights() for _ in range(kept.REMEMBERED + 9)]:
        used(W)
    assert len(kept._met) == kept.REMEMBERED


def test_none_of_bfloat16_or_inference_tensors() -> None:
    W = weights().bfloat16()
    with torch.inference_mode():
        inside = weights()
    for _ in range(3):
        assert kept.kept(W) is None
        assert kept.kept(inside) is None


def test_in_the_op_with_gradients_on() -> None:
    """Accumulating gradients meets the same weights several times; a step ends that."""
    W = torch.nn.Parameter(weights())
    optimizer = torch.optim.Adam([W], fused=True)
    everyone = torch.empty(0, dtype=torch.bool)
    for _ in range(2):
        for _ in range(3):
            values, _ = ops.linear_topk(torch.randn(20, 64), W, None, [7], [True], [everyone], backend="cpu")
            values.sum().backward()
        optimizer.step()
    assert kept.counts == {"made": 2, "used": 2, "stale": 0}
    assert linear_topk.why_not(W, W, None, [7], [True], []) is None
