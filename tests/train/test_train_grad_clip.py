"""`grad_clip`: its default, "none", and runs that were begun with another default."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_kernels.errors import ConfigError
from sae_kernels.train import Config, load_config, train

Tables = dict[str, dict[str, Any]]


@pytest.mark.parametrize(
    ("given", "clip"), [({}, 1.0), ({"grad_clip": "none"}, None), ({"grad_clip": None}, None), ({"grad_clip": 3}, 3)]
)
def test_what_is_meant(configure: Callable[..., Config], given: dict[str, Any], clip: float | None) -> None:
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


def test_clipping_is_what_makes_the_difference(tables: Tables, tmp_path: Path) -> None:
    """Gradients of the squared error are far above 1: the default must act, and "none" must not."""
    found = {}
    for name, clip in (("default", {}), ("one", {"grad_clip": 1.0}), ("none", {"grad_clip": "none"})):
        coder = {"architecture": "relu", "d_sae": 16, "sparsity_coefficient": 0.1}
        training = {**tables["training"], **clip}
        output = {"dir": str(tmp_path / name)}
        found[name] = weights(Config.from_dict({**tables, "coder": coder, "training": training, "output": output}))
    assert all(torch.equal(found["default"][key], found["one"][key]) for key in found["one"])
    assert not torch.equal(found["default"]["W_enc"], found["none"]["W_enc"])


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
    with pytest.raises(ConfigError, match=r"\[training\] grad_clip: None, now 1\.0"):
        train(Config.from_dict(longer), progress=False)

    saved = json.loads(written.read_text())
    saved["training"]["steps"] = tables["training"]["steps"]
    run = train(Config.from_dict(saved), progress=False)
    assert run.resumed_from == 5
    assert all(torch.equal(run.coder.state_dict()[key], value) for key, value in whole.items())
