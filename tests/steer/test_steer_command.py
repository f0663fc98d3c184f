"""`sae-kernels steer`: of runs of one layer and of several, and of what cannot be steered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.tiny_lm import LAYER, TEXTS, tiny_lm

import sae_kernels as sk
from sae_kernels.cli import main
from sae_kernels.steer import Ablate, Clamp, steer
from sae_kernels.steer.run import steer_run

LAYERS = [f"model.layers.{layer}" for layer in range(3)]
MLPS = [f"{layer}.mlp" for layer in LAYERS]
RUNS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "topk": ("topk", {"d_in": 16, "k": 4}, {"hook_in": LAYER}),
    "crosscoder": ("crosscoder", {"d_in": 48, "n_layers": 3, "sparsity_coefficient": 0.1}, {"hook_in": LAYERS}),
    "clt": (
        "clt",
        {"d_in": 48, "n_layers": 3, "sparsity_coefficient": 0.1},
        {"hook_in": [f"{mlp}:in" for mlp in MLPS], "hook_out": MLPS},
    ),
}


def run_of(kind: str, path: Path) -> tuple[Path, sk.SparseCoder, Any]:
    """A finished run's directory, its coder, and its hook points."""
    architecture, config, points = RUNS[kind]
    tiny_lm().module.save_pretrained(path / "lm")
    tiny_lm().tokenizer.save_pretrained(path / "lm")
    (path / "text").mkdir()
    for name, text in TEXTS:
        (path / "text" / f"{name}.txt").write_text(text * 4)
    coder = sk.create(architecture, d_sae=48, seed=0, **config)
    for name, parameter in coder.named_parameters():
        if name.startswith("W_dec"):
            parameter.data.normal_(std=1.0)
    activations = {
        "adapter": "huggingface",
        "model": str(path / "lm"),
        "text": str(path / "text"),
        "context_length": 16,
        "local_files_only": True,
        **points,
    }
    sk.save(coder, path / "run" / "coder")
    (path / "run" / "config.json").write_text(json.dumps({"activations": activations}))
    found = [tuple(each) if isinstance(each, list) else each for each in points.values()]
    return path / "run", coder, (found[0], found[-1])


@pytest.mark.parametrize("kind", RUNS)
def test_text_with_and_without(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    directory, coder, points = run_of(kind, tmp_path)
    arguments = ["steer", str(directory), "--prompt", "ab", "--tokens", "6", "--temperature", "0"]
    assert main([*arguments, "--clamp", "5=60", "--ablate", "7", "--scale", "5=2"]) == 0
    shown = capsys.readouterr().out
    plain = tiny_lm().generate("ab", 6, temperature=0)
    with steer(tiny_lm(), coder, points, [Clamp(5, 120.0), Ablate(7)]):
        steered = tiny_lm().generate("ab", 6, temperature=0)
    assert steered != plain
    found = steer_run(directory, [Clamp(5, 120.0), Ablate(7)], "ab", n_tokens=6, temperature=0)
    assert found == (plain, steered)
    for text in found:
        assert f"  ab{text.splitlines()[0] if text else ''}" in shown
    assert shown.index("without:") < shown.index("\nwith:")


WRONG = {
    "no edit": ([], 1, "--ablate"),
    "no number": (["--clamp", "5=much"], 2, "expected LATENT=VALUE"),
    "no latent": (["--ablate", "5=1"], 2, "expected LATENT"),
    "out of range": (["--ablate", "48"], 1, "latent 48"),
    "not finite": (["--add", "1=inf"], 1, "expected a finite number"),
}


@pytest.mark.parametrize(("arguments", "code", "message"), WRONG.values(), ids=WRONG)
def test_wrong_usage_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    directory, *_ = run_of("topk", tmp_path)
    try:
        found = main(["steer", str(directory), "--prompt", "ab", *arguments])
    except SystemExit as stop:
        found = stop.code
    assert found == code
    assert message in capsys.readouterr().err


def test_a_run_on_tensors_has_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    from sae_kernels.adapters import write_shard

    directory, *_ = run_of("topk", tmp_path)
    write_shard(tmp_path / "shard.safetensors", torch.randn(20, 16))
    table = {"adapter": "tensors", "path": str(tmp_path / "shard.safetensors")}
    (directory / "config.json").write_text(json.dumps({"activations": table}))
    assert main(["steer", str(directory), "--prompt", "ab", "--ablate", "1"]) == 1
    assert "comes from no language model" in capsys.readouterr().err
