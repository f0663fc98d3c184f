"""Normalisation: what it is, that the saved coder has it in its weights, and a longer run goes on without it there."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import sae_kernels as sk
from sae_kernels.adapters import ActivationBatch
from sae_kernels.architectures.topk import TopKCoder
from sae_kernels.errors import ConfigError, TrainingError
from sae_kernels.train import Config, checkpoint, train
from sae_kernels.train.normalize import Estimate, Normalization, estimate

Tables = dict[str, dict[str, Any]]


class Fixed:
    """A source with the blocks it is given; the target is the input where none are."""

    def __init__(self, *inputs: torch.Tensor, targets: tuple[torch.Tensor, ...] = ()) -> None:
        self.blocks = [ActivationBatch(x, y) for x, y in zip(inputs, targets or inputs, strict=True)]
        self.d_in, self.d_out = inputs[0].shape[1], (targets or inputs)[0].shape[1]
        self.n_blocks = len(inputs)

    def block(self, index: int) -> ActivationBatch:
        return self.blocks[index]


def mean_norm(x: torch.Tensor) -> float:
    return float(x.double().norm(dim=1).mean())


@pytest.mark.parametrize("centred", [False, True])
def test_activations_have_norm_sqrt_d_afterwards(centred: bool) -> None:
    x, y = 5 * torch.randn(300, 8) + 2, 0.1 * torch.randn(300, 6) - 1
    source = Fixed(*x.split(70), targets=y.split(70))
    mode = "sqrt_d_centred" if centred else "sqrt_d"
    (whole,) = estimate([Estimate(source, mode, 10_000)])
    for side, rows in ((whole.input, x), (whole.target, y)):
        new = side.apply(rows)
        assert mean_norm(new) == pytest.approx(math.sqrt(rows.shape[1]), rel=1e-5)
        assert bool(side.mean.any()) == centred
        if centred:
            assert new.mean(0).abs().max() < 1e-5
    (some,) = estimate([Estimate(source, mode, 100)])
    assert mean_norm(some.input.apply(x[:100])) == pytest.approx(math.sqrt(8), rel=1e-5)
    together = estimate([Estimate(source, mode, 100), Estimate(source, "sqrt_d", 10_000)])
    assert torch.equal(together[0].input.scale, some.input.scale)


def test_layers_side_by_side_have_a_scale_each() -> None:
    x = torch.cat([3 * torch.randn(50, 4), 100 * torch.randn(50, 4)], dim=1)
    (found,) = estimate([Estimate(Fixed(x), "sqrt_d", 1000, n_layers=2)])
    for layer in found.input.apply(x).split(4, dim=1):
        assert mean_norm(layer) == pytest.approx(2, rel=1e-5)
    assert found.target is found.input


@pytest.mark.parametrize("x", [torch.zeros(9, 4), torch.full((9, 4), torch.inf), torch.zeros(0, 4)])
def test_what_has_no_norm_is_refused(x: torch.Tensor) -> None:
    with pytest.raises(TrainingError, match=r"normalisation: E‖x - μ‖ of the input's first \d rows is"):
        estimate([Estimate(Fixed(x), "sqrt_d", 1000)])


@pytest.mark.parametrize("architecture", ["topk", "transcoder"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_saved_coder_takes_and_gives_raw_activations(
    tables: Tables, shards: Path, plain_shards: Path, architecture: str, dtype: str
) -> None:
    tables["activations"]["path"] = str(shards if architecture == "transcoder" else plain_shards)
    tables["coder"]["architecture"] = architecture
    tables["training"].update(normalize="sqrt_d_centred", dtype=dtype, steps=20)
    run = train(Config.from_dict(tables), progress=False)
    assert run.normalize is not None
    saved = sk.load(run.directory / "coder")
    assert saved.W_enc.dtype == getattr(torch, dtype)
    x = run.source.block(0).input
    with torch.no_grad():
        given = saved.float()(x)
        inside = run.coder.float()(run.normalize.input.apply(x))
    error = (given - run.normalize.target.invert(inside)).norm() / given.norm()
    assert error < (1e-5 if dtype == "float32" else 0.2)  # bfloat16: a few latents near rank k change places
    raw = run.source.block(0).target
    fvu = float((raw - given).square().sum() / (raw - raw.mean(0)).square().sum())
    assert fvu == pytest.approx(run.metrics["fvu"], abs=0.2)
    assert fvu < 1


def test_a_longer_run_goes_on_from_what_was_not_folded(configure: Any, tables: Tables, tmp_path: Path) -> None:
    options = {"normalize": "sqrt_d", "lr_schedule": "constant"}
    first = train(configure(steps=6, **options), progress=False)
    saved = checkpoint.newest(first.checkpoints)
    assert saved is not None
    assert saved.normalize is not None
    assert torch.equal(saved.coder.W_enc, first.coder.W_enc)
    assert not torch.equal(sk.load(first.directory / "coder").W_enc, first.coder.W_enc)
    longer = train(configure(steps=12, **options), progress=False)
    tables["output"]["dir"] = str(tmp_path / "whole")
    whole = train(configure(steps=12, **options), progress=False)
    for name, value in sk.load(whole.directory / "coder").state_dict().items():
        assert torch.equal(sk.load(longer.directory / "coder").state_dict()[name], value)


def test_a_checkpoint_holds_it(configure: Any) -> None:
    run = train(configure(normalize="sqrt_d_centred"), progress=False)
    saved = checkpoint.newest(run.checkpoints)
    assert saved is not None
    assert saved.normalize is not None
    assert run.normalize is not None
    expected, found = run.normalize.tensors(), saved.normalize.tensors()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    again = Normalization.from_tensors(found)
    assert torch.equal(again.target.mean, run.normalize.target.mean)


def test_an_architecture_that_cannot_fold(configure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TopKCoder, "can_fold", classmethod(lambda cls: False))
    with pytest.raises(ConfigError, match=r"\[training\] normalize = 'sqrt_d': architecture 'topk' cannot fold"):
        configure(normalize="sqrt_d")
