"""Checkpoints on good days, damaged ones, and disks that are full."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_kernels.errors import CheckpointError, ConfigError
from sae_kernels.train import checkpoint, train
from sae_kernels.train.run import Run

CHECKPOINTS = [f"step_{step:08d}" for step in (10, 12)]  # of the configuration in conftest


def names(run: Run) -> list[str]:
    return sorted(path.name for path in run.checkpoints.iterdir())


@pytest.fixture
def done(configure: Any) -> Run:
    run = train(configure(), progress=False)
    assert names(run) == CHECKPOINTS
    return run


def test_all_that_is_written_is_read(done: Run) -> None:
    saved = checkpoint.newest(done.checkpoints)
    assert saved is not None
    assert (saved.step, saved.tokens, saved.position) == (12, 12 * 32, done.batches.position)
    for name, value in done.coder.state_dict().items():
        assert torch.equal(saved.coder.state_dict()[name], value)
    expected = checkpoint.optimizer_tensors(done.optimizer, done.coder)
    assert sorted(saved.optimizer) == sorted(expected)
    assert {name.split("/")[1] for name in expected} == {"exp_avg", "exp_avg_sq", "step"}
    assert all(torch.equal(saved.optimizer[name], expected[name]) for name in expected)
    assert torch.equal(saved.tokens_since_fired, done.tokens_since_fired)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 7)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("spoil", [truncate, flip, Path.unlink])
@pytest.mark.parametrize("name", ["coder/weights.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
def test_a_damaged_newest_is_reported_and_the_one_before_used(done: Run, configure: Any, name: str, spoil: Any) -> None:
    spoil(done.checkpoints / "step_00000012" / name)
    if (name, spoil) == ("manifest.json", flip):
        return  # half a chance that it hits white space
    before = done.coder.W_dec.clone()
    with pytest.warns(
        RuntimeWarning, match=rf"step_00000012: damaged \(.*{Path(name).name}.*going on from step_00000010"
    ):
        run = train(configure(), progress=False)
    assert run.resumed_from == 10
    assert torch.equal(run.coder.W_dec, before)
    assert names(run) == ["damaged_step_00000012", *CHECKPOINTS]
    assert train(configure(), progress=False).resumed_from == 12  # and it is reported once


def test_when_all_are_damaged_nothing_is_touched(done: Run, configure: Any) -> None:
    for name in CHECKPOINTS:
        truncate(done.checkpoints / name / "optimizer.safetensors")
    with pytest.raises(CheckpointError, match="no checkpoint can be read") as raised:
        train(configure(), progress=False)
    assert all(name in str(raised.value) for name in CHECKPOINTS)
    assert names(done) == CHECKPOINTS


def test_a_newer_version_says_so(done: Run, configure: Any) -> None:
    path = done.checkpoints / "step_00000012"
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**state, "version": 99}))
    checkpoint.manifest.write(path)
    with pytest.raises(CheckpointError, match="version 99, expected 1"):
        train(configure(), progress=False)


def test_another_configuration_is_refused_by_its_keys(done: Run, configure: Any, tables: Any) -> None:
    tables["coder"]["k"] = 2
    with pytest.raises(ConfigError, match=r"\[coder\] k: 3, now 2\n  \[training\] lr: 0.01, now 0.5"):
        train(configure(lr=0.5), progress=False)
    assert train(configure(lr=0.5), resume=False, progress=False).resumed_from is None


def test_more_steps_go_on_and_fewer_are_refused(done: Run, configure: Any) -> None:
    with pytest.raises(ConfigError, match=r"asks for 3 steps, the run in .* has made 12"):
        train(configure(steps=3), progress=False)
    run = train(configure(steps=16), progress=False)
    assert (run.resumed_from, run.step) == (12, 16)


def test_a_coder_without_checkpoints_is_not_overwritten(done: Run, configure: Any) -> None:
    shutil.rmtree(done.checkpoints)
    with pytest.raises(ConfigError, match="holds a coder, and no checkpoint"):
        train(configure(), progress=False)


@pytest.mark.parametrize("writer", ["save_file", "formats.save", "manifest.write"])
def test_a_full_disk_leaves_the_last_good_one(configure: Any, monkeypatch: pytest.MonkeyPatch, writer: str) -> None:
    real = {
        "save_file": checkpoint.save_file,
        "formats.save": checkpoint.formats.save,
        "manifest.write": checkpoint.manifest.write,
    }
    calls = 0

    def full(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > (2 if writer == "save_file" else 1):  # in the second checkpoint
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real[writer](*args)

    monkeypatch.setattr(f"sae_kernels.train.checkpoint.{writer}", full)
    with pytest.raises(CheckpointError) as raised:
        train(configure(), progress=False)
    message = str(raised.value)
    assert "step_00000010 could not be written: No space left on device" in message
    assert message.endswith("checkpoints/step_00000005")
    root = configure().output.dir / "checkpoints"
    assert [path.name for path in root.iterdir()] == ["step_00000005"]
    monkeypatch.undo()
    assert train(configure(), progress=False).resumed_from == 5


LIMITED = """
import json, resource, sys
from sae_kernels.errors import CheckpointError
from sae_kernels.train import Config, train
config = Config.from_dict(json.loads(sys.argv[1]))
import sae_kernels.train.checkpoint as checkpoint
real = checkpoint.write
def write(*args):
    if args[0].step > 5:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    return real(*args)
checkpoint.write = write
try:
    train(config, progress=False)
except CheckpointError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no file size limits")
def test_a_real_limit_of_the_operating_system(configure: Any) -> None:
    config = configure()
    command = [sys.executable, "-c", LIMITED, json.dumps(config.to_dict())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "step_00000010 could not be written" in done.stdout, done.stderr
    assert "File too large" in done.stdout
    assert [path.name for path in (config.output.dir / "checkpoints").iterdir()] == ["step_00000005"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_directory_is_found_before_training(configure: Any, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(CheckpointError, match="Permission denied"):
            train(configure(), progress=False)
    finally:
        tmp_path.chmod(0o700)


def test_a_directory_that_is_a_file(configure: Any) -> None:
    configure().output.dir.write_text("")
    with pytest.raises(CheckpointError, match="run could not be written: File exists"):
        train(configure(), progress=False)


def test_metrics_that_cannot_be_written(configure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Any, metrics: Any) -> None:
        if metrics["step"] == 8:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("sae_kernels.train.log.MetricsLog.write", full)
    with pytest.raises(CheckpointError, match=r"metrics.jsonl could not be written: No space left.*step_00000005"):
        train(configure(), progress=False)
