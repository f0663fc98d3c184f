"""Dead latents that start anew: which, from what, and what the optimiser forgets."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sae_kernels as sk
from sae_kernels.architectures.topk import TopKCoder
from sae_kernels.errors import ConfigError
from sae_kernels.train import train
from sae_kernels.train.resample import _draw


def test_a_new_start() -> None:
    coder = sk.create("topk", d_in=6, d_sae=10, k=2, seed=0)
    with torch.no_grad():
        coder.W_enc.mul_(torch.arange(1.0, 11)[:, None])
        coder.b_enc.fill_(7)
        coder.b_dec.fill_(0.5)
    before = {name: value.clone() for name, value in coder.state_dict().items()}
    latents = torch.tensor([3, 8])
    living = torch.ones(10, dtype=torch.bool)
    living[[3, 8, 9]] = False
    x = torch.randn(2, 6)
    coder.resample(latents, x, x, living=living)
    direction = torch.nn.functional.normalize(x - 0.5, dim=1)
    measure = before["W_enc"][living].norm(dim=1).mean()
    torch.testing.assert_close(coder.W_dec[latents], direction)
    torch.testing.assert_close(coder.W_enc[latents], 0.2 * measure * direction)
    assert coder.b_enc[latents].tolist() == [0, 0]
    others = torch.ones(10, dtype=torch.bool)
    others[latents] = False
    for name in ("W_enc", "b_enc", "W_dec"):
        assert torch.equal(coder.state_dict()[name][others], before[name][others])
    assert torch.equal(coder.b_dec, before["b_dec"])


@pytest.mark.parametrize(("architecture", "keys"), [("relu", {}), ("crosscoder", {"n_layers": 2})])
def test_an_encoder_that_reads_x_itself_has_the_same_pre_acts(architecture: str, keys: dict[str, int]) -> None:
    coder = sk.create(architecture, d_in=6, d_sae=10, sparsity_coefficient=1.0, seed=0, **keys)
    with torch.no_grad():
        coder.b_dec.copy_(3 + torch.randn(6))
    x = torch.randn(2, 6)
    coder.resample(torch.tensor([3, 8]), x, x, living=torch.ones(10, dtype=torch.bool))
    centred = x - coder.b_dec
    with torch.no_grad():
        pre_acts = (x @ coder.W_enc.mT + coder.b_enc)[:, [3, 8]].diagonal()
    torch.testing.assert_close(coder.W_dec[[3, 8]], torch.nn.functional.normalize(centred, dim=1))
    torch.testing.assert_close(pre_acts, coder.W_enc[[3, 8]].norm(dim=1) * centred.norm(dim=1))


def test_a_transcoders_rows_come_from_either_side() -> None:
    coder = sk.create("transcoder", d_in=6, d_sae=10, k=2, d_target=4, seed=0)
    x, y = torch.randn(1, 6), torch.randn(1, 4)
    living = torch.zeros(10, dtype=torch.bool)  # none: norms have 1 as their measure
    coder.resample(torch.tensor([5]), x, y, living=living)
    torch.testing.assert_close(coder.W_enc[5], 0.2 * x[0] / x.norm())
    torch.testing.assert_close(coder.W_dec[5], y[0] / y.norm())


def test_rows_are_drawn_by_the_square_of_their_loss_and_once() -> None:
    losses = torch.tensor([1.0, 3.0, 0.0, torch.nan]).double()
    first = [int(_draw(losses, 1, seed)[0]) for seed in range(2000)]
    assert first.count(1) / 2000 == pytest.approx(0.9, abs=0.03)
    assert sorted(_draw(losses, 9, 0).tolist()) == [0, 1]
    assert not len(_draw(torch.zeros(3).double(), 2, 0))
    assert sorted(_draw(1e200 * losses, 9, 0).tolist()) == [0, 1]


def test_when_and_what_is_forgotten(configure: Any, tables: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    tables["coder"].update(auxk_coefficient=0.0, d_sae=64)
    seen: list[tuple[int, torch.Tensor]] = []
    real = TopKCoder.resample

    def resample(self: Any, latents: torch.Tensor, x: torch.Tensor, target: torch.Tensor, **keys: Any) -> None:
        assert len(latents) == len(x) == len(target)
        assert not keys["living"][latents].any()
        seen.append((len(seen), latents.clone()))
        real(self, latents, x, target, **keys)

    monkeypatch.setattr(TopKCoder, "resample", resample)
    run = train(configure(steps=8, resample_every=4, resample_until=8, resample_tokens=100), progress=False)
    assert len(seen) == 2
    assert run.resampled == run.metrics["resampled"] == sum(len(latents) for _, latents in seen) > 0
    latents = seen[-1][1]
    assert (run.tokens_since_fired[latents] == 0).all()
    for name in ("W_enc", "b_enc", "W_dec"):
        state = run.optimizer.state[run.coder.get_parameter(name)]
        for moment in ("exp_avg", "exp_avg_sq"):
            assert not state[moment][latents].any()
            assert state[moment].any()
    torch.testing.assert_close(run.coder.W_dec[latents].norm(dim=1), torch.ones(len(latents)))
    seen.clear()
    train(configure(steps=16, resample_every=4, resample_until=8), resume=False, progress=False)
    assert len(seen) == 2
    seen.clear()
    train(configure(steps=8, resample_every=4), resume=False, progress=False)  # half of the steps by default
    assert len(seen) == 1


def test_it_helps(configure: Any, tables: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Latents that answer to nothing are dead for ever without it."""
    real = TopKCoder.initialise

    def initialise(self: Any, x: torch.Tensor, target: torch.Tensor) -> None:
        real(self, x, target)
        self.b_enc.data[4:] = -100.0

    monkeypatch.setattr(TopKCoder, "initialise", initialise)
    tables["coder"]["auxk_coefficient"] = 0.0
    ends = {}
    for every in (None, 10):
        tables["output"]["dir"] += str(every)
        ends[every] = train(configure(steps=100, resample_every=every), progress=False).metrics
    assert ends[None]["dead"] == 28 / 32
    assert ends[10]["dead"] < 0.5
    assert ends[10]["fvu"] < 0.5 * ends[None]["fvu"]


def test_what_cannot_be_meant(configure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="resample_until = 3, but there is no resample_every"):
        configure(resample_until=3)
    monkeypatch.setattr(TopKCoder, "can_resample", classmethod(lambda cls: False))
    with pytest.raises(ConfigError, match="architecture 'topk' does not resample latents"):
        configure(resample_every=3)
