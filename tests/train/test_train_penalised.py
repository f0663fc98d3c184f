"""relu, gated and jumprelu through the trainer: resumed in the middle of λ's warm-up, folded, in mixed dtypes."""

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
    "relu": {},
    "gated": {},
    "jumprelu": {},
    "jumprelu-tanh": {"sparsity_loss": "tanh"},
}
kinds = pytest.mark.parametrize("kind", CODERS)


def config(tables: Tables, kind: str, **training: Any) -> Config:
    keys = {"d_sae": tables["coder"]["d_sae"], "sparsity_coefficient": 0.05, "sparsity_warmup_steps": 8}
    coder = {**keys, "architecture": kind.split("-")[0], **CODERS[kind]}
    return Config.from_dict({**tables, "coder": coder, "training": {**tables["training"], **training}})


def metrics(directory: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "tokens_per_second"} for line in lines]


@kinds
def test_resumed_in_the_middle_of_the_warm_up(tables: Tables, kind: str) -> None:
    asked = config(tables, kind, checkpoint_every=4, keep_checkpoints=9, log_every=1, normalize="sqrt_d")
    run = train(asked, progress=False)
    weights, lines = sk.load(run.directory / "coder").state_dict(), metrics(run.directory)
    shutil.rmtree(run.directory / "coder")
    for folder in sorted((run.directory / "checkpoints").iterdir())[1:]:
        shutil.rmtree(folder)
    again = train(asked, progress=False)
    assert again.resumed_from == 4
    assert metrics(run.directory) == lines
    found = sk.load(run.directory / "coder").state_dict()
    assert found.keys() == weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(found[name], tensor), name


@kinds
def test_the_saved_coder_reads_activations_as_they_are(tables: Tables, kind: str) -> None:
    run = train(config(tables, kind, steps=80, normalize="sqrt_d_centred", lr=5e-3), progress=False)
    results = evaluate_run(run.directory, metrics=["l0", "fvu"])["metrics"]
    assert results["fvu"] < 0.5
    assert 0 < results["l0"] < tables["coder"]["d_sae"]


@pytest.mark.parametrize("kind", ["gated", "jumprelu", "jumprelu-tanh"])
@pytest.mark.parametrize("how", [{"dtype": "bfloat16"}, {"autocast": "bfloat16"}], ids=str)
def test_with_weights_or_arithmetic_of_16_bits(tables: Tables, kind: str, how: dict[str, str]) -> None:
    run = train(config(tables, kind, **how), progress=False)
    assert run.outcome == "finished"
    coder = sk.load(run.directory / "coder")
    assert coder.W_enc.dtype == (torch.bfloat16 if "dtype" in how else torch.float32)
    if kind != "gated":
        assert coder.get_parameter("log_theta").dtype == torch.float32
