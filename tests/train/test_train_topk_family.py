"""Schedules and running thresholds through the trainer: resumed in the middle of annealing, folded, evaluated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import sae_kernels as sk
from sae_kernels.evaluate import evaluate_run
from sae_kernels.train import Config, train

Tables = dict[str, dict[str, Any]]

CODERS = {
    "topk": {"multi_topk": True},
    "batch_topk": {},
    "matryoshka": {"prefixes": [4, 12, 32]},
}
kinds = pytest.mark.parametrize("kind", CODERS)


def config(tables: Tables, kind: str, **training: Any) -> Config:
    coder = {**tables["coder"], "architecture": kind, "k_anneal_from": 12, "k_anneal_steps": 10, **CODERS[kind]}
    return Config.from_dict({**tables, "coder": coder, "training": {**tables["training"], **training}})


def metrics(directory: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "tokens_per_second"} for line in lines]


@kinds
def test_resumed_in_the_middle_of_annealing(tables: Tables, kind: str) -> None:
    asked = config(tables, kind, checkpoint_every=4, keep_checkpoints=9, log_every=1)
    run = train(asked, progress=False)
    weights = sk.load(run.directory / "coder").state_dict()
    lines = metrics(run.directory)
    assert [line["l0"] for line in lines][::2] == pytest.approx([12, 10, 8, 7, 5, 3], rel=0.1)
    for gone in (run.directory / "coder", *(run.directory / "checkpoints" / f"step_000000{n}" for n in ("08", "12"))):
        shutil.rmtree(gone)
    again = train(asked, progress=False)
    assert again.resumed_from == 4
    assert metrics(run.directory) == lines
    found = sk.load(run.directory / "coder").state_dict()
    assert found.keys() == weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("kind", ["batch_topk", "matryoshka"])
def test_the_trained_coder_has_a_threshold_that_keeps_k(tables: Tables, kind: str) -> None:
    """With the inputs' normalisation folded into the weights, and into θ."""
    run = train(config(tables, kind, steps=60, normalize="sqrt_d_centred"), progress=False)
    coder = sk.load(run.directory / "coder")
    assert coder.get_buffer("threshold") > 0
    results = evaluate_run(run.directory, metrics=["l0", "fvu"])["metrics"]
    assert results["l0"] == pytest.approx(3, rel=0.25)
    assert results["fvu"] < 0.3
