"""A batch in parts: gradients averaged over them, figures and firing counted over all."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sae_kernels.architectures.topk import TopKCoder
from sae_kernels.errors import ConfigError
from sae_kernels.train import train


def test_gradients_are_the_parts_average(configure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, torch.Tensor] = {}
    calls: list[tuple[torch.Tensor, torch.Tensor | None]] = []
    start: dict[str, torch.Tensor] = {}
    real = TopKCoder.loss

    def loss(self: Any, x: torch.Tensor, target: torch.Tensor | None = None, **keys: Any) -> Any:
        start.update({name: p.detach().clone() for name, p in self.named_parameters()})
        calls.append((x, target))
        return real(self, x, target, **keys)

    def before_step(self: Any) -> None:
        seen.update({name: p.grad.clone() for name, p in self.named_parameters()})

    monkeypatch.setattr(TopKCoder, "loss", loss)
    monkeypatch.setattr(TopKCoder, "before_step", before_step)
    run = train(configure(steps=1, accumulate=4), progress=False)
    assert [len(x) for x, _ in calls] == [8, 8, 8, 8]
    assert all(target is x for x, target in calls)

    run.coder.load_state_dict(start)
    run.coder.zero_grad()
    losses = [real(run.coder, x, x) for x, _ in calls]
    (sum(loss.total for loss in losses) / 4).backward()
    for name, parameter in run.coder.named_parameters():
        torch.testing.assert_close(seen[name], parameter.grad)
    assert run.metrics["loss"] == pytest.approx(sum(loss.total.item() for loss in losses) / 4)
    assert run.metrics["l0"] == pytest.approx(sum(float(loss.codes.l0().sum()) for loss in losses) / 32)
    fired = torch.stack([loss.codes.fired() for loss in losses]).any(0)
    assert torch.equal(run.tokens_since_fired == 0, fired)
    x = torch.cat([x for x, _ in calls]).double()
    y = torch.cat([loss.reconstruction for loss in losses]).detach().double()
    assert run.metrics["fvu"] == pytest.approx(float((x - y).square().sum() / (x - x.mean(0)).square().sum()))


def test_parts_that_do_not_divide_a_batch(configure: Any) -> None:
    with pytest.raises(ConfigError, match=r"\[training\] accumulate = 5, expected a divisor of batch_size = 32"):
        configure(accumulate=5)
