"""Tiny activations on disk, and configurations that train on them in well under a second."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_kernels import hookimpl
from sae_kernels.adapters import write_shard
from sae_kernels.plugins import plugins
from sae_kernels.train import Config

D_IN, D_OUT, D_SAE = 8, 6, 32

Configure = Callable[..., Config]


@pytest.fixture(autouse=True)
def _small(one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread, and no waiting for the disk: only a power cut could tell."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of 300 rows, sparse combinations of 12 directions, with a target of another width."""
    folder = tmp_path_factory.mktemp("shards")
    random = torch.Generator().manual_seed(1)
    directions = torch.randn(12, D_IN, generator=random)
    for i in range(2):
        acts = torch.rand(300, 12, generator=random) * (torch.rand(300, 12, generator=random) < 0.2)
        x = acts @ directions + 1
        write_shard(folder / f"{i}.safetensors", x, (x @ directions.mT)[:, :D_OUT].contiguous())
    return folder


@pytest.fixture(scope="session")
def plain_shards(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same inputs, without a target."""
    from safetensors.torch import load_file

    folder = tmp_path_factory.mktemp("plain")
    for shard in shards.iterdir():
        write_shard(folder / shard.name, load_file(shard)["input"])
    return folder


@pytest.fixture
def tables(plain_shards: Path, tmp_path: Path) -> dict[str, dict[str, Any]]:
    """A configuration's tables, for a test to change."""
    return {
        "activations": {"adapter": "tensors", "path": str(plain_shards), "block_rows": 70, "run_rows": 10},
        "coder": {"architecture": "topk", "d_sae": D_SAE, "k": 3},
        "training": {
            "steps": 12,
            "batch_size": 32,
            "lr": 0.01,
            "lr_warmup_steps": 2,
            "dead_after_tokens": 64,
            "log_every": 2,
            "checkpoint_every": 5,
            "threads": 1,
        },
        "output": {"dir": str(tmp_path / "run")},
    }


@pytest.fixture
def configure(tables: dict[str, dict[str, Any]]) -> Configure:
    """`configure(steps=3)`: the configuration, with keys of `[training]` changed."""

    def make(**training: Any) -> Config:
        return Config.from_dict({**tables, "training": {**tables["training"], **training}})

    return make


class Recorder:
    """A plugin that writes down what it is told."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    @hookimpl
    def sae_kernels_train_start(self, run: Any) -> None:
        self.heard.append(f"start {run.step}")

    @hookimpl
    def sae_kernels_train_step(self, run: Any, step: int, metrics: dict[str, float]) -> None:
        assert run.metrics == metrics
        assert run.step == step
        self.heard.append(f"step {step}")

    @hookimpl
    def sae_kernels_checkpoint(self, run: Any, step: int, path: Path) -> None:
        assert (path / "state.json").exists()
        self.heard.append(f"checkpoint {step} {path.name}")

    @hookimpl
    def sae_kernels_train_end(self, run: Any, reason: str) -> None:
        self.heard.append(f"end {reason}")


@pytest.fixture
def heard() -> Iterator[list[str]]:
    """What a life-cycle plugin hears during the test."""
    recorder = Recorder()
    plugins().register(recorder, "recorder")
    yield recorder.heard
    plugins().unregister("recorder")
