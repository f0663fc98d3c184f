"""`grad_clip`: its default, "none", and runs that were begun with another default."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sae_kernels.errors import ConfigError
from sae_kernels.train import Config, load_config, train
from sae_kernels.train.gradients import ALWAYS, clip

Tables = dict[str, dict[str, Any]]


@pytest.mark.parametrize(
    ("given", "clip"),
    [
        ({}, "always"),
        ({"grad_clip": "always"}, "always"),
        ({"grad_clip": "none"}, None),
        ({"grad_clip": None}, None),
        ({"grad_clip": 3}, 3),
    ],
)
def test_what_is_meant(configure: Callable[..., Config], given: dict[str, Any], clip: float | str | None) -> None:
    assert configure(**given).training.grad_clip == clip


@pytest.mark.parametrize("value", ["off", 0, -1.0, float("inf"), True])
def test_what_cannot_be_meant(configure: Callable[..., Config], value: object) -> None:
    with pytest.raises(ConfigError, match=r"\[training\] grad_clip"):
        configure(grad_clip=value)


def test_toml_can_say_none(tables: Tables, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(
        f'[activations]\nadapter = "tensors"\npath = "{tables["activations"]["path"]}"\n'
        '[coder]\narchitecture = "topk"\nd_sae = 8\nk = 2\n[training]\nsteps = 1\ngrad_clip = "none"\n'
        f'[output]\ndir = "{tmp_path / "run"}"\n'
    )
    assert load_config(path).training.grad_clip is None


def weights(config: Config) -> dict[str, torch.Tensor]:
    """Of a run, trained to its end."""
    return {name: tensor.clone() for name, tensor in train(config, progress=False).coder.state_dict().items()}


def test_each_makes_a_difference(tables: Tables, tmp_path: Path) -> None:
    """Gradients of the squared error are far above 1 at first, and below it later."""
    found = {}
    for name, given in (("default", {}), ("one", {"grad_clip": 1.0}), ("none", {"grad_clip": "none"})):
        coder = {"architecture": "relu", "d_sae": 16, "sparsity_coefficient": 0.1}
        training = {**tables["training"], **given}
        output = {"dir": str(tmp_path / name)}
        found[name] = weights(Config.from_dict({**tables, "coder": coder, "training": training, "output": output}))
    for one, other in itertools.combinations(found.values(), 2):
        assert not torch.equal(one["W_enc"], other["W_enc"])


def parameters(*grads: Tensor | None) -> list[nn.Parameter]:
    made = [nn.Parameter(torch.zeros(3, 2)) for _ in grads]
    for each, grad in zip(made, grads, strict=True):
        each.grad = grad
    return made


@pytest.mark.parametrize("size", [1e-20, 1e-3, 1.0, 7e4])
@pytest.mark.parametrize("grad_clip", [ALWAYS, 0.5, 2.0, None])
def test_what_it_makes_of_gradients(size: float, grad_clip: float | str | None) -> None:
    grads = [size * torch.randn(3, 2) for _ in range(2)]
    before = float(torch.cat(grads).double().norm())
    some = parameters(grads[0].clone(), None, grads[1].clone())
    assert float(clip(some, grad_clip)) == pytest.approx(before)
    after = 1.0 if grad_clip == ALWAYS else before if grad_clip is None else min(before, float(grad_clip))
    for each, grad in zip(some[::2], grads, strict=True):
        torch.testing.assert_close(each.grad, (grad.double() * (after / before)).float())


def test_gradients_of_zero_stay_zero() -> None:
    some = parameters(torch.zeros(3, 2), torch.zeros(3, 2))
    assert float(clip(some, ALWAYS)) == 0
    assert all(not each.grad.any() for each in some if each.grad is not None)


def test_gradients_that_are_not_finite_are_told_by_their_norm() -> None:
    assert float(clip(parameters(torch.full((3, 2), float("inf"))), ALWAYS)) == float("inf")
    assert math.isnan(float(clip(parameters(torch.full((3, 2), float("nan"))), 1.0)))


def test_with_always_the_loss_may_have_any_scale() -> None:
    """Adam's denominators too: two runs whose gradients differ by a factor from the start go the same way."""
    found = []
    for scale in (1.0, 1e3):
        weight = nn.Parameter(torch.ones(4, 3))
        adam = torch.optim.Adam([weight], lr=0.1)
        for step in range(5):
            weight.grad = scale * (weight.detach() - torch.arange(12.0).view(4, 3) / (1 + step))
            clip([weight], ALWAYS)
            adam.step()
        found.append(weight.detach())
    torch.testing.assert_close(*found)


def test_an_older_run_goes_on_unclipped(tables: Tables, tmp_path: Path) -> None:
    """Its config.json has `"grad_clip": null`: with that, or with "none", the run goes on as it began."""
    tables["coder"] = {"architecture": "relu", "d_sae": 16, "sparsity_coefficient": 0.1}
    tables["training"]["grad_clip"] = "none"
    whole = weights(Config.from_dict(tables))

    tables["output"]["dir"] = str(tmp_path / "older")
    first = {**tables, "training": {**tables["training"], "steps": 5}}
    train(Config.from_dict(first), progress=False)
    written = tmp_path / "older" / "config.json"
    assert json.loads(written.read_text())["training"]["grad_clip"] is None
    longer = {**tables, "training": {**tables["training"]}}
    del longer["training"]["grad_clip"]
    with pytest.raises(ConfigError, match=r"\[training\] grad_clip: None, now 'always'"):
        train(Config.from_dict(longer), progress=False)

    saved = json.loads(written.read_text())
    saved["training"]["steps"] = tables["training"]["steps"]
    run = train(Config.from_dict(saved), progress=False)
    assert run.resumed_from == 5
    assert all(torch.equal(run.coder.state_dict()[key], value) for key, value in whole.items())
