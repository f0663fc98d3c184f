from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import make_run
from support.tiny_lm import LAYER, TEXTS, tiny_lm

import sae_kernels as sk
from sae_kernels.adapters import TensorActivations, write_shard
from sae_kernels.errors import ArgumentError, FormatError
from sae_kernels.evaluate import evaluate, evaluate_run, table
from sae_kernels.plugins import plugins
from sae_kernels.specs import Adapter


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run on shards, as training leaves it."""
    (tmp_path / "shards").mkdir()
    write_shard(tmp_path / "shards" / "0.safetensors", torch.randn(200, 8))
    return make_run(tmp_path / "run", {"adapter": "tensors", "path": str(tmp_path / "shards"), "epochs": 7}, 8)


@pytest.fixture
def listener() -> Iterator[list[tuple[Path, dict[str, Any]]]]:
    heard: list[tuple[Path, dict[str, Any]]] = []

    class Plugin:
        @sk.hookimpl
        def sae_kernels_evaluation(self, run: Path, results: dict[str, Any]) -> None:
            heard.append((run, results))

    plugins().register(Plugin(), "listener")
    yield heard
    plugins().unregister("listener")


def test_held_out_data_once(run: Path, listener: list[tuple[Path, dict[str, Any]]]) -> None:
    found = evaluate_run(run, max_tokens=None)
    source = TensorActivations(run.parent / "shards", split="heldout")
    expected = evaluate(sk.load(run / "coder"), source, max_tokens=None)
    assert found == {"data": {"adapter": "tensors", "split": "heldout"}, **expected}
    assert found["tokens"] == 10
    assert json.loads((run / "evaluation.json").read_text()) == found
    assert listener == [(run, found)]


def test_a_language_model_from_its_folder(tmp_path: Path) -> None:
    tiny_lm().module.save_pretrained(tmp_path / "lm")
    tiny_lm().tokenizer.save_pretrained(tmp_path / "lm")
    (tmp_path / "text.txt").write_text(TEXTS[1][1])
    keys = {
        "model": str(tmp_path / "lm"),
        "text": str(tmp_path / "text.txt"),
        "context_length": 16,
        "heldout": 0.3,
    }
    run = make_run(tmp_path / "run", {"adapter": "huggingface", "hook_in": LAYER, **keys}, 16)
    found = evaluate_run(run, ablation="mean")
    assert found["language_model"]["ablation"] == "mean"
    assert found["language_model"]["sequences"] == round(0.3 * (len(TEXTS[1][1]) + 1) / 15)
    shown = table(found)
    for piece in (
        "held-out",
        "FVU",
        "CE recovered",
        "the mean activation",
        "never fired in",
        "firing densities",
        LAYER,
    ):
        assert piece in shown


def test_an_adapter_without_splits_is_said_so(run: Path) -> None:
    class Plugin:
        @sk.hookimpl
        def sae_kernels_adapters(self) -> list[Adapter]:
            return [Adapter("whole", "no splits", lambda *, path: TensorActivations(path))]

    plugins().register(Plugin(), "whole-plugin")
    try:
        make_run(run, {"adapter": "whole", "path": str(run.parent / "shards")}, 8)
        found = evaluate_run(run)
    finally:
        plugins().unregister("whole-plugin")
    assert found["data"]["split"].startswith("none")
    assert found["tokens"] == 200
    assert "not held out" in table(found)


def test_a_failed_evaluation_leaves_the_last(run: Path) -> None:
    evaluate_run(run)
    before = (run / "evaluation.json").read_bytes()
    with pytest.raises(ArgumentError):
        evaluate_run(run, max_tokens=0)
    assert (run / "evaluation.json").read_bytes() == before
    assert sorted(path.name for path in run.iterdir()) == ["coder", "config.json", "evaluation.json"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"activations": []}', '{"activations": {"adapter": 3}}', "\xff"]
)
def test_a_damaged_configuration(run: Path, text: str) -> None:
    (run / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(FormatError, match=r"config\.json: expected JSON"):
        evaluate_run(run)


def test_not_a_run(tmp_path: Path, run: Path) -> None:
    with pytest.raises(ArgumentError, match=r"no config\.json"):
        evaluate_run(tmp_path / "elsewhere")
    (run / "coder").rename(run / "moved")
    with pytest.raises(ArgumentError, match="no coder"):
        evaluate_run(run)


def test_table_shows_plugins_figures_failures_and_what_is_undefined() -> None:
    shown = table(
        {
            "architecture": "topk",
            "coder": {"d_sae": 4096},
            "tokens": 12345,
            "metrics": {"fvu": None, "theirs": 2.5, "notes": [1, 2]},
            "failed": {"other": "ValueError: no"},
        }
    )
    assert "4,096 latents, on 12,345 tokens" in shown
    assert "undefined" in shown
    assert "2.5" in shown
    assert "notes" not in shown
    assert "other: failed, ValueError: no" in shown


def test_a_run_on_a_cache_is_evaluated_on_what_the_cache_was_made_from(tmp_path: Path) -> None:
    """Held-out text, with the language model at hand; on the cache's own last rows where that is gone."""
    model = tiny_lm()
    model.module.save_pretrained(tmp_path / "lm")
    model.tokenizer.save_pretrained(tmp_path / "lm")
    (tmp_path / "text.txt").write_text("".join(text for _, text in TEXTS))
    origin = {"adapter": "huggingface", "model": str(tmp_path / "lm"), "text": str(tmp_path / "text.txt")}
    origin |= {"hook_in": LAYER, "context_length": 16, "heldout": 0.3, "epochs": 3}
    (tmp_path / "cache").mkdir()
    write_shard(tmp_path / "cache" / "shard_00000.safetensors", torch.randn(200, 16).bfloat16())
    (tmp_path / "cache" / "cache.json").write_text(json.dumps({"activations": origin}))
    run = make_run(tmp_path / "run", {"adapter": "tensors", "path": str(tmp_path / "cache")}, 16)
    found = evaluate_run(run)
    assert found["data"] == {"adapter": "huggingface", "split": "heldout", "cache": str(tmp_path / "cache")}
    assert found["language_model"]["ce_orig"] > 0
    (tmp_path / "text.txt").unlink()
    with pytest.warns(UserWarning, match=r"what it was made from can't be read.*text\.txt"):
        found = evaluate_run(run)
    assert found["data"] == {"adapter": "tensors", "split": "heldout"}
