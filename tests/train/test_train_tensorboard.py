"""TensorBoard: written when asked for, by a plugin; a missing package is found before training."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from sae_kernels.errors import ConfigError
from sae_kernels.plugins import plugins
from sae_kernels.train import train

scalars = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def read(directory: Any) -> dict[str, list[tuple[int, float]]]:
    events = scalars.EventAccumulator(str(directory / "tensorboard")).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_nothing_unless_asked(configure: Any) -> None:
    assert not (train(configure(), progress=False).directory / "tensorboard").exists()


def test_figures_over_steps_and_evaluations(configure: Any) -> None:
    directory = train(configure(steps=6, tensorboard=True), progress=False).directory
    run = train(configure(steps=8, tensorboard=True), progress=False)  # resumed
    plugins().notify(
        "sae_kernels_evaluation", run=directory, results={"fvu": 0.25, "ce": {"zero": 9.0}, "note": "text"}
    )
    written = read(directory)
    assert [step for step, _ in written["train/loss"]] == [2, 4, 6, 8]
    assert written["train/fvu"][-1][1] == pytest.approx(run.metrics["fvu"])
    assert written["evaluation/fvu"] == [(8, 0.25)]
    assert written["evaluation/ce/zero"] == [(8, 9.0)]


def test_a_missing_package(configure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install 'sae-kernels\[tensorboard\]'"):
        train(configure(tensorboard=True), progress=False)
    assert not configure().output.dir.exists()


def test_a_blocked_plugin(configure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(plugins().infos, "tensorboard")
    with pytest.raises(ConfigError, match="the plugin is not loaded"):
        train(configure(tensorboard=True), progress=False)
