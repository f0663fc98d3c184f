"""Killed at any moment, a run ends as if it had never been interrupted: bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from sae_kernels import hookimpl
from sae_kernels.architectures.topk import TopKCoder
from sae_kernels.plugins import plugins
from sae_kernels.train import Config, train, trainer
from sae_kernels.train.run import Run

Tables = dict[str, dict[str, Any]]

# One process imports; each attempt is a fork of it that is killed, from outside or by itself.
KILLED = """
import itertools, json, os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from sae_kernels.train import Config, train
os.fsync = lambda handle: None  # a kill is no power cut, and disks are slow
config, seed = Config.from_dict(json.loads(sys.argv[1])), int(sys.argv[2])
chance = random.Random(seed)

def die_at(n):
    # before the n-th of the calls that make a checkpoint
    calls = itertools.count(1)
    def dying(real):
        def call(*args, **keys):
            if next(calls) == n:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **keys)
        return call
    os.fsync, os.open = dying(os.fsync), dying(os.open)
    for name in ("mkdir", "replace", "write_text", "open"):
        setattr(Path, name, dying(getattr(Path, name)))

kills = attempts = 0
while True:
    attempts += 1
    child = os.fork()
    if child == 0:
        if attempts <= 10 and attempts % 2:
            die_at(chance.randrange(4, 60))
        try:
            train(config, progress=False)
        except BaseException as error:
            print("attempt", attempts, repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    if attempts <= 10 and not attempts % 2:
        time.sleep(chance.uniform(0.01, 0.25))
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        kills += 1
    else:
        assert os.WEXITSTATUS(status) == 0
        if attempts > 10:
            break
print("kills", kills)
"""


def result(directory: Path) -> dict[str, Any]:
    """All that must not depend on interruptions."""
    files = {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
        and path.name
        in (
            "weights.safetensors",
            "optimizer.safetensors",
            "counters.safetensors",
            "normalize.safetensors",
            "state.json",
        )
    }
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["tokens_per_second"]
    leftovers = [path.name for path in directory.rglob(".*") if path.name != ".lock"]
    return {"files": files, "metrics": lines, "leftovers": leftovers}


EVERYTHING = {
    "normalize": "sqrt_d_centred",
    "normalize_tokens": 200,
    "accumulate": 2,
    "optimizer": "adam_rows",
    "lr_schedule": "cosine",
    "resample_every": 4,
    "resample_until": 20,
    "resample_tokens": 64,
    "grad_clip": 1.0,
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("architecture", "training"),
    [pytest.param("topk", {}, id="plain"), pytest.param("batch_topk", EVERYTHING, id="everything")],
)
def test_killed_at_any_moment(tables: Tables, tmp_path: Path, architecture: str, training: dict[str, Any]) -> None:
    tables["coder"]["architecture"] = architecture
    tables["training"].update(steps=24, checkpoint_every=3, log_every=2, **training)
    tables["output"]["dir"] = str(tmp_path / "whole")
    whole = train(Config.from_dict(tables), progress=False)

    tables["output"]["dir"] = str(tmp_path / "killed")
    command = [sys.executable, "-c", KILLED, json.dumps(tables), "5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[-1]) >= 3, done.stdout
    expected, found = result(whole.directory), result(tmp_path / "killed")
    assert not training or whole.resampled > 0
    assert found["metrics"] == expected["metrics"]
    assert sorted(found["files"]) == sorted(expected["files"])
    for name, data in expected["files"].items():
        assert found["files"][name] == data, name
    assert found["leftovers"] == []


class Signal:
    """A plugin that sends the process a signal after a step."""

    def __init__(self, number: int, step: int) -> None:
        self.number, self.step = number, step

    def sae_kernels_train_step(self, run: Run, step: int, metrics: dict[str, float]) -> None:
        if step == self.step:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_a_checkpoint_and_a_clean_end(
    configure: Any,
    tables: Tables,
    tmp_path: Path,
    heard: list[str],
    number: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def noisy(self: TopKCoder, x: Tensor) -> Tensor:  # random states matter too
        return x + torch.randn_like(x) * random.random() * numpy.random.rand() - self.b_dec

    monkeypatch.setattr(TopKCoder, "encoder_input", noisy)
    monkeypatch.setattr(Signal, "sae_kernels_train_step", hookimpl(Signal.sae_kernels_train_step))
    handler = signal.getsignal(number)
    plugins().register(Signal(number, 8), "signal")
    try:
        run = train(configure(), progress=False)
    finally:
        plugins().unregister("signal")
    assert signal.getsignal(number) == handler
    assert (run.outcome, run.step) == ("interrupted", 8)
    assert heard[-2:] == ["checkpoint 8 step_00000008", "end interrupted"]
    assert json.loads((run.directory / "run.json").read_text())["outcome"] == "interrupted"
    assert not (run.directory / "coder").exists()

    resumed = train(configure(), progress=False)
    assert (resumed.outcome, resumed.resumed_from) == ("finished", 8)
    tables["output"]["dir"] = str(tmp_path / "whole")
    whole = train(configure(), progress=False)
    expected, found = result(whole.directory), result(resumed.directory)
    assert found["metrics"] == expected["metrics"]
    assert found["files"]["coder/weights.safetensors"] == expected["files"]["coder/weights.safetensors"]


def test_an_interruption_outside_a_step_is_announced(
    configure: Any, heard: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "take_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(configure(), progress=False)
    assert heard == ["start 0", "end interrupted"]


def test_a_finished_run_stays_as_it_is(configure: Any) -> None:
    first = train(configure(), progress=False)
    expected = result(first.directory)
    again = train(configure(), progress=False)
    assert (again.outcome, again.resumed_from, again.metrics) == ("finished", 12, first.metrics)
    assert result(first.directory) == expected


def test_starting_over_removes_what_was_there(configure: Any) -> None:
    first = train(configure(), progress=False)
    expected = result(first.directory)
    (first.directory / "mine.txt").write_text("stays")
    again = train(configure(), resume=False, progress=False)
    assert again.resumed_from is None
    assert result(first.directory) == expected
    assert (first.directory / "mine.txt").exists()


def test_a_line_cut_short_is_mended(configure: Any) -> None:
    first = train(configure(steps=10), progress=False)
    log = first.directory / "metrics.jsonl"
    with log.open("a") as file:
        file.write('{"step": 11, "to')
    train(configure(steps=12), progress=False)
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [2, 4, 6, 8, 10, 12]
