"""`train`: what it learns, writes, announces, and leaves as it was."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import sae_kernels as sk
from sae_kernels.errors import ConfigError, TrainingError
from sae_kernels.train import Config, train

Tables = dict[str, dict[str, Any]]


def lines(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_it_learns_and_writes_what_it_says(configure: Any) -> None:
    run = train(configure(steps=150), progress=False)
    assert run.outcome == "finished"
    written = lines(run.directory)
    assert [line["step"] for line in written] == list(range(2, 151, 2))
    assert written[-1]["fvu"] < 0.3 < written[0]["fvu"]
    last = written[-1]
    assert last["tokens"] == 150 * 32
    assert 0 < last["l0"] <= 3
    assert 0 <= last["dead"] <= 1
    assert last["dead_after_tokens"] == 64
    assert last["loss"] >= last["loss/fvu"] == pytest.approx(last["fvu"], rel=1e-5)
    summary = json.loads((run.directory / "run.json").read_text())
    assert (summary["outcome"], summary["step"], summary["metrics"]) == ("finished", 150, last)
    assert Config.from_dict(json.loads((run.directory / "config.json").read_text())).training.steps == 150
    coder = sk.load(run.directory / "coder")
    assert all(torch.equal(a, b) for a, b in zip(coder.parameters(), run.coder.parameters(), strict=True))
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["step_00000145", "step_00000150"]


def test_a_transcoder_takes_both_widths_from_the_source(tables: Tables, shards: Path) -> None:
    tables["activations"]["path"] = str(shards)
    tables["coder"].update(architecture="transcoder", skip=True)
    run = train(Config.from_dict(tables), progress=False)
    assert (run.coder.d_in, run.coder.d_out) == (8, 6)
    assert run.metrics["fvu"] < 1


def test_widths_that_are_not_the_sources(tables: Tables, shards: Path) -> None:
    tables["coder"]["d_in"] = 9
    with pytest.raises(ConfigError, match=r"\[coder\] d_in = 9, the activations have 8"):
        train(Config.from_dict(tables), progress=False)
    del tables["coder"]["d_in"]
    tables["activations"]["path"] = str(shards)
    with pytest.raises(ConfigError, match="'topk' reconstructs 8 features, the activations' target has 6"):
        train(Config.from_dict(tables), progress=False)


@pytest.mark.parametrize(
    "changed", [{"autocast": "bfloat16"}, {"dtype": "bfloat16"}, {"dtype": "float64"}, {"grad_clip": 0.1}]
)
def test_precisions(configure: Any, changed: dict[str, Any]) -> None:
    run = train(configure(**changed), progress=False)
    expected = getattr(torch, changed.get("dtype", "float32"))
    assert all(parameter.dtype == expected for parameter in run.coder.parameters())
    assert run.metrics["fvu"] < 1.5


def test_the_smallest_there_is(tables: Tables, tmp_path: Path) -> None:
    from sae_kernels.adapters import write_shard

    write_shard(tmp_path / "one.safetensors", torch.ones(1, 1))
    tables["activations"] = {"adapter": "tensors", "path": str(tmp_path / "one.safetensors"), "split": "all"}
    tables["coder"].update(d_sae=1, k=1)
    run = train(Config.from_dict({**tables, "training": {"tokens": 3, "batch_size": 1, "lr": 1e-3}}), progress=False)
    assert (run.step, run.metrics["l0"] <= 1) == (3, True)
    assert json.loads((run.directory / "run.json").read_text())["metrics"]["fvu"] is None  # no variance


def test_the_seed_decides_and_random_states_are_given_back(configure: Any, tables: Tables, tmp_path: Path) -> None:
    before = torch.get_rng_state(), numpy.random.get_state()[1].tolist(), random.getstate()
    first = train(configure(), progress=False).coder.W_enc.clone()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (numpy.random.get_state()[1].tolist(), random.getstate()) == before[1:]
    tables["output"]["dir"] = str(tmp_path / "again")
    torch.rand(3)
    assert torch.equal(train(configure(), progress=False).coder.W_enc, first)
    tables["output"]["dir"] = str(tmp_path / "other")
    tables["coder"]["seed"] = 1
    assert not torch.equal(train(configure(), progress=False).coder.W_enc, first)


def test_hooks_ride_along(configure: Any, heard: list[str]) -> None:
    train(configure(), progress=False)
    assert heard == [
        "start 0",
        "step 2",
        "step 4",
        "checkpoint 5 step_00000005",
        "step 6",
        "step 8",
        "step 10",
        "checkpoint 10 step_00000010",
        "step 12",
        "checkpoint 12 step_00000012",
        "end finished",
    ]


def test_latents_count_as_dead_after_the_window(configure: Any) -> None:
    run = train(configure(dead_after_tokens=10**6), progress=False)
    assert run.metrics["dead"] == 0
    assert "loss/auxk" not in run.metrics
    assert int(run.tokens_since_fired.max()) <= run.tokens == 12 * 32


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_stops_the_run(
    configure: Any, where: str, heard: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sae_kernels.architectures.topk import TopKCoder

    weights: list[torch.Tensor] = []
    real_loss, real_before = TopKCoder.loss, TopKCoder.before_step
    steps = iter(range(1, 100))

    def loss(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        weights.append(self.W_enc.detach().clone())
        bad = where == "loss" and next(steps) == 8
        return real_loss(self, x * float("nan") if bad else x, *args, **kwargs)

    def before_step(self: Any) -> None:
        real_before(self)
        if where == "gradient" and next(steps) == 8:
            self.W_enc.grad[3, 2] = float("inf")

    monkeypatch.setattr(TopKCoder, "loss", loss)
    monkeypatch.setattr(TopKCoder, "before_step", before_step)
    with pytest.raises(TrainingError) as raised:
        train(configure(), progress=False)
    assert str(raised.value).startswith(
        f"step 8: the {'loss is nan' if where == 'loss' else 'norm of the gradients is inf'}"
    )
    assert "checkpoints/step_00000005" in str(raised.value)
    assert heard[-1] == "end failed"
    assert torch.isfinite(weights[-1]).all()
    monkeypatch.undo()
    assert train(configure(), progress=False).resumed_from == 5  # and the run can go on


def test_activations_that_are_not_finite_are_counted(tables: Tables, tmp_path: Path) -> None:
    from sae_kernels.adapters import write_shard

    x = torch.randn(200, 8)
    x[7, 3] = float("inf")
    write_shard(tmp_path / "bad.safetensors", x)
    tables["activations"] = {"adapter": "tensors", "path": str(tmp_path / "bad.safetensors"), "split": "all"}
    with pytest.raises(TrainingError, match=r"step 1: .*; 1 values of the batch's input are not finite; no checkpoint"):
        train(Config.from_dict(tables), progress=False)


def test_weights_that_are_not_finite_are_never_a_checkpoint(configure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from sae_kernels.architectures.topk import TopKCoder

    monkeypatch.setattr(TopKCoder, "after_step", lambda self: self.b_enc.data.fill_(float("nan")))
    with pytest.raises(TrainingError, match=r"step 1|not finite"):
        train(configure(checkpoint_every=1), progress=False)
    assert not (configure().output.dir / "checkpoints").exists()


def test_two_runs_in_one_directory(configure: Any) -> None:
    from sae_kernels.train.lock import locked

    config = configure()
    config.output.dir.mkdir()
    with locked(config.output.dir), pytest.raises(TrainingError, match=r"process \d+ is training here"):
        train(config, progress=False)
    train(config, progress=False)


def test_a_language_model(tables: Tables, tmp_path: Path) -> None:
    from support.tiny_lm import D_MODEL, LAYER, TEXTS, tiny_lm

    model = tiny_lm()
    model.module.save_pretrained(tmp_path / "lm")
    model.tokenizer.save_pretrained(tmp_path / "lm")
    (tmp_path / "text.txt").write_text(TEXTS[0][1])
    tables["activations"] = {
        "adapter": "huggingface",
        "model": str(tmp_path / "lm"),
        "text": str(tmp_path / "text.txt"),
        "hook_in": LAYER,
        "context_length": 16,
        "block_sequences": 4,
    }
    run = train(Config.from_dict(tables), progress=False)
    assert run.coder.d_in == D_MODEL
    assert run.metrics["fvu"] < 1


def test_a_bar_is_shown_on_request(configure: Any, capsys: pytest.CaptureFixture[str]) -> None:
    train(configure(), progress=False)
    assert capsys.readouterr() == ("", "")
    train(configure(steps=20), progress=True)
    shown = capsys.readouterr().err
    for word in ("tok/s", "loss", "FVU", "L0", "dead"):
        assert word in shown
