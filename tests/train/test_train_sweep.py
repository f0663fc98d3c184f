"""Several runs on one pass over the data: which ones, that each is what it would be alone, and what is shared."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_lm import LAYER, TEXTS, tiny_lm

from sae_kernels import hookimpl
from sae_kernels.adapters import HuggingFaceModel
from sae_kernels.architectures.topk import TopKCoder
from sae_kernels.errors import ConfigError, TrainingError
from sae_kernels.evaluate import evaluate_run
from sae_kernels.plugins import plugins
from sae_kernels.train import Config, load_config, load_sweep, train, train_together
from sae_kernels.train.sweep import expand, open_sources

Tables = dict[str, dict[str, Any]]
MLP = LAYER + ".mlp"


def result(directory: Path) -> dict[str, Any]:
    """All that must not depend on company."""
    found: dict[str, Any] = {
        str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*.safetensors")
    }
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    found["metrics"] = [{**line, "tokens_per_second": 0} for line in lines]
    return found


@pytest.fixture
def lm(tables: Tables, tmp_path: Path) -> Tables:
    """The configuration on a language model."""
    model = tiny_lm()
    model.module.save_pretrained(tmp_path / "lm")
    model.tokenizer.save_pretrained(tmp_path / "lm")
    (tmp_path / "text.txt").write_text(TEXTS[0][1] * 3)
    tables["activations"] = {
        "adapter": "huggingface",
        "model": str(tmp_path / "lm"),
        "text": str(tmp_path / "text.txt"),
        "context_length": 16,
        "block_sequences": 4,
    }
    return tables


def test_the_product_of_lists(tables: Tables) -> None:
    del tables["coder"]["d_sae"]
    configs = expand({**tables, "sweep": {"d_sae": [16, 32], "seed": [0, 1, 2], "lr": [0.01]}} | without_lr(tables))
    names = [config.output.dir.name for config in configs]
    assert names[:2] == ["d_sae=16,seed=0,lr=0.01", "d_sae=16,seed=1,lr=0.01"]
    assert len(set(names)) == 6
    assert {(c.coder.fields["d_sae"], c.coder.seed, c.training.lr) for c in configs} == {
        (d, seed, 0.01) for d in (16, 32) for seed in (0, 1, 2)
    }


def without_lr(tables: Tables) -> Tables:
    return {"training": {name: value for name, value in tables["training"].items() if name != "lr"}}


def test_hook_points_go_in_pairs(lm: Tables) -> None:
    sweep = {"hook_in": [f"{LAYER}.mlp:in", LAYER], "hook_out": [MLP, LAYER], "k": [2, 3]}
    del lm["coder"]["k"]
    configs = expand({**lm, "sweep": sweep})
    assert [config.output.dir.name for config in configs][:2] == [f"hook_in={LAYER}.mlp_in,k={k}" for k in (2, 3)]
    assert [config.activations.options["hook_out"] for config in configs] == [MLP, MLP, LAYER, LAYER]


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        ({}, "expected a table of lists"),
        ({"seed": 3}, r"\[sweep\] seed is 3 \(an integer\), expected a list"),
        ({"seed": []}, r"seed is \[\].*expected a list"),
        ({"sed": [1]}, r"sed: unknown key, did you mean 'seed'"),
        ({"batch_size": [1]}, r"batch_size: unknown key"),
        ({"k": [1]}, r"k stands in \[coder\] too"),
        ({"hook_in": ["a"]}, r"hook_in: adapter 'tensors' has no such key"),
        ({"seed": [1, 1]}, "two runs are named seed=1"),
        ({"seed": [0, "a"]}, r"seed=a: \[coder\] seed is 'a'"),
        ({"k_aux": [1, 99]}, r"k_aux=99: \[coder\] k_aux = 99"),
    ],
)
def test_what_cannot_be_meant(tables: Tables, sweep: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        expand({**tables, "sweep": sweep})


def test_points_that_do_not_pair(lm: Tables) -> None:
    with pytest.raises(ConfigError, match="2 of hook_in and 1 of hook_out"):
        expand({**lm, "sweep": {"hook_in": ["a", "b"], "hook_out": ["c"]}})


def test_files(tables: Tables, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(
        f"""
        [activations]\nadapter = "tensors"\npath = "{tables["activations"]["path"]}"
        [coder]\narchitecture = "topk"\nk = 3
        [training]\nsteps = 3
        [sweep]\nd_sae = [8, 16]
        [output]\ndir = "{tmp_path / "out"}"
        """
    )
    assert [config.coder.fields["d_sae"] for config in load_sweep(path)] == [8, 16]
    with pytest.raises(ConfigError, match="load_sweep reads them"):
        load_config(path)
    assert tomllib.loads(path.read_text())["sweep"]
    single = tmp_path / "config.json"
    single.write_text(json.dumps(tables))
    assert len(load_sweep(single)) == 1
    assert load_config(single).to_dict() == Config.from_dict(tables).to_dict()


def test_layers_sizes_and_seeds_on_one_pass(lm: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is what it is alone, and the language model sees a sequence once."""
    lm["training"].update(normalize="sqrt_d_centred", normalize_tokens=100)
    lm["training"].update(resample_every=4, resample_tokens=64, dead_after_tokens=32)
    lm["coder"].update(architecture="transcoder", auxk_coefficient=0.0)
    del lm["coder"]["d_sae"]
    sweep = {"hook_in": [LAYER, f"{LAYER}.mlp:in"], "hook_out": [LAYER, MLP], "d_sae": [24, 40], "seed": [0]}
    configs = expand({**lm, "sweep": sweep})
    assert len(configs) == 4

    forwards: list[int] = []
    real = HuggingFaceModel.activations

    def activations(self: Any, ids: torch.Tensor, points: Any) -> Any:
        forwards.append(len(list(points)))
        return real(self, ids, points)

    monkeypatch.setattr(HuggingFaceModel, "activations", activations)
    runs = train_together(configs, progress=False)
    together = len(forwards)
    assert [run.outcome for run in runs] == ["finished"] * 4
    counts = []
    for config, run in zip(configs, runs, strict=True):
        forwards.clear()
        tables = config.to_dict()
        tables["output"]["dir"] = str(tmp_path / "alone" / config.output.dir.name)
        alone = train(Config.from_dict(tables), progress=False)
        assert result(alone.directory) == result(run.directory)
        counts.append(len(forwards))
        assert evaluate_run(run.directory, max_tokens=200)["metrics"]["l0"] > 0
    assert together <= 1.5 * max(counts) < sum(counts) / 2  # reading ahead to resample differs
    assert runs[0].source.block(0).target is runs[0].source.block(0).input
    assert runs[2].source.hook_out == MLP


def test_a_stream_is_shared_too(lm: Tables, tmp_path: Path) -> None:
    lines = "".join(json.dumps({"text": f"{i} {TEXTS[1][1]}"}) + "\n" for i in range(9))
    (tmp_path / "texts.jsonl").write_text(lines)
    lm["activations"].update(text=str(tmp_path / "texts.jsonl"), stream=True, heldout_characters=50)
    configs = expand({**lm, "sweep": {"hook_in": [LAYER, MLP, [LAYER, MLP]]}})
    shared = open_sources(configs)
    for index in (0, 1, 0):
        for config, source in zip(configs, shared, strict=True):
            expected, given = config.activations.open().block(index), source.block(index)
            assert torch.equal(given.input, expected.input)
            assert given.target is given.input
            assert torch.equal(given.ids, expected.ids)  # pyright: ignore[reportArgumentType]


def test_seeds_on_tensors_and_on_alone(tables: Tables, tmp_path: Path) -> None:
    """Interrupted together, one goes on alone, then all together."""
    configs = expand({**tables, "sweep": {"seed": [0, 1]}})

    class Interrupt:
        @hookimpl
        def sae_kernels_train_step(self, run: Any, step: int, metrics: Any) -> None:
            if step == 8:
                os.kill(os.getpid(), signal.SIGINT)

    plugins().register(Interrupt(), "interrupt")
    try:
        runs = train_together(configs, progress=False)
    finally:
        plugins().unregister("interrupt")
    assert [run.outcome for run in runs] == ["interrupted"] * 2
    steps = [run.step for run in runs]
    assert steps == [8, 7]  # the second had not made its step yet
    assert [path.name for path in runs[1].checkpoints.iterdir()][-1] == "step_00000007"
    train(load_config(configs[0].output.dir / "config.json"), progress=False)
    runs = train_together(configs, progress=False)
    assert [run.resumed_from for run in runs] == [12, 7]
    for seed, config in enumerate(configs):
        tables["coder"]["seed"] = seed
        tables["output"]["dir"] = str(tmp_path / f"alone{seed}")
        alone = train(Config.from_dict(tables), progress=False).directory
        for name, value in result(alone).items():
            assert name not in result(config.output.dir) or result(config.output.dir)[name] == value, name
        assert (alone / "coder" / "weights.safetensors").exists()


def test_one_that_fails_leaves_the_others(tables: Tables, monkeypatch: pytest.MonkeyPatch, heard: list[str]) -> None:
    real = TopKCoder.loss

    def loss(self: Any, x: torch.Tensor, *args: Any, **keys: Any) -> Any:
        return real(self, x * float("nan") if self.k_now == 1 else x, *args, **keys)

    monkeypatch.setattr(TopKCoder, "loss", loss)
    monkeypatch.setattr(TopKCoder, "k_now", property(lambda self: self.config.k), raising=False)
    del tables["coder"]["k"]
    configs = expand({**tables, "sweep": {"k": [1, 2, 3]}})
    with pytest.raises(TrainingError, match=r"1 of 3 runs failed, the others finished\n.*k=1: step 1: the loss is nan"):
        train_together(configs, progress=False)
    assert [(config.output.dir / "coder").exists() for config in configs] == [False, True, True]
    assert [line for line in heard if line.startswith("end")] == ["end failed", "end finished", "end finished"]


def test_what_cannot_be_trained_together(tables: Tables, shards: Path) -> None:
    one = Config.from_dict(tables)
    tables["output"]["dir"] += "2"
    tables["training"]["threads"] = 2
    with pytest.raises(ConfigError, match=r"\[training\] threads"):
        train_together([one, Config.from_dict(tables)], progress=False)
    tables["training"]["threads"] = 1
    tables["activations"]["path"] = str(shards)
    with pytest.raises(ConfigError, match="by more than hook_in and hook_out"):
        train_together([one, Config.from_dict(tables)], progress=False)


def test_an_adapter_of_one_hook_point_is_opened_for_each(tables: Tables) -> None:
    from sae_kernels.adapters import TensorActivations
    from sae_kernels.specs import Adapter

    path = tables["activations"]["path"]

    def opens(*, hook_in: str, hook_out: str | None = None) -> Any:
        return TensorActivations(path, block_rows=70, run_rows=10, seed=len(hook_in), shuffle=True)

    class Plugin:
        @staticmethod
        @hookimpl
        def sae_kernels_adapters() -> list[Adapter]:
            return [Adapter("single", "", opens)]

    plugins().register(Plugin, "single")
    try:
        tables["activations"] = {"adapter": "single"}
        configs = expand({**tables, "sweep": {"hook_in": ["a", "bb"], "seed": [0, 1]}})
        with pytest.warns(RuntimeWarning, match="'single' does not read several hook points at once"):
            sources = open_sources(configs)
        assert sources[0] is sources[1]
        assert not torch.equal(sources[0].block(0).input, sources[2].block(0).input)
    finally:
        plugins().unregister("single")


KILLED = """
import json, os, sys, time
import torch
torch.set_num_threads(1)
from sae_kernels.train import train_together
from sae_kernels.train.sweep import expand
os.fsync = lambda handle: None
configs = expand(json.loads(sys.argv[1]))
for delay in (0.15, 0.3, 0.2, 0.4, None):
    child = os.fork()
    if child == 0:
        train_together(configs, progress=False)
        os._exit(0)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, 9)
    assert os.waitpid(child, 0)[1] in (0, 9)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_any_moment(tables: Tables, tmp_path: Path) -> None:
    tables["training"].update(steps=60, checkpoint_every=2, normalize="sqrt_d")
    whole = expand({**tables, "sweep": {"seed": [0, 1, 2]}})
    train_together(whole, progress=False)
    tables["output"]["dir"] = str(tmp_path / "killed")
    killed = {**tables, "sweep": {"seed": [0, 1, 2]}}
    command = [sys.executable, "-c", KILLED, json.dumps(killed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    for one, other in zip(whole, expand(killed), strict=True):
        assert result(one.output.dir) == result(other.output.dir)


def test_the_docs_name_the_keys() -> None:
    docs = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    section = docs.split("## `[sweep]`\n", 1)[1].split("\n## ", 1)[0]
    for word in ("hook_in", "hook_out", "lr", "seed", "d_sae", "load_sweep", "train_together"):
        assert word in section


def test_the_command(tables: Tables, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sae_kernels.cli import main

    path = tmp_path / "sweep.json"
    path.write_text(json.dumps({**tables, "sweep": {"seed": [0, 1]}}))
    assert main(["train", str(path), "--quiet"]) == 0
    shown = capsys.readouterr().out
    for seed in (0, 1):
        assert f"trained to step 12: {tmp_path / 'run' / f'seed={seed}' / 'coder'}" in shown
    path.write_text(json.dumps({**tables, "sweep": {"sead": [0, 1]}}))
    assert main(["train", str(path), "--quiet"]) != 0
    assert "did you mean 'seed'?" in capsys.readouterr().err
