"""Coders of several layers, trained on the embedded language model from a configuration, evaluated, and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import sae_kernels as sk
import sae_kernels.demo
from sae_kernels.adapters import HuggingFaceModel
from sae_kernels.errors import ConfigError, ShapeError, UnknownNameError
from sae_kernels.evaluate import evaluate_run
from sae_kernels.features import contexts, top_activations
from sae_kernels.steer import Add, Clamp, steer
from sae_kernels.steer.run import steer_run
from sae_kernels.train import Config, train

pytest.importorskip("transformers")
MODEL = Path(sae_kernels.demo.__file__).parent / "model"
MLPS = [f"model.layers.{layer}.mlp" for layer in (1, 3)]
KINDS: dict[str, dict[str, dict[str, Any]]] = {
    "crosscoder": {
        "activations": {"hook_in": ["model.layers.1", "model.layers.3"]},
        "coder": {"architecture": "crosscoder", "n_layers": 2, "d_sae": 512, "sparsity_coefficient": 3.0},
    },
    "models": {
        "activations": {"hook_in": "model.layers.3", "model": [str(MODEL), str(MODEL)]},
        "coder": {"architecture": "crosscoder", "n_layers": 2, "d_sae": 512, "sparsity_coefficient": 3.0},
    },
    "batch_topk": {
        "activations": {"hook_in": ["model.layers.1", "model.layers.3"]},
        "coder": {"architecture": "batch_topk", "k": 16, "d_sae": 512},
    },
    "clt": {
        "activations": {"hook_in": [f"{point}:in" for point in MLPS], "hook_out": MLPS},
        "coder": {"architecture": "clt", "n_layers": 2, "d_sae": 512, "sparsity_coefficient": 0.1},
    },
    "relu transcoder": {
        "activations": {"hook_in": f"{MLPS[1]}:in", "hook_out": MLPS[1]},
        "coder": {
            "architecture": "skip_transcoder",
            "d_sae": 512,
            "activation": "relu",
            "sparsity_coefficient": 0.1,
        },
    },
}


def tables(kind: str, directory: Path, text: Path) -> dict[str, dict[str, Any]]:
    chosen = KINDS[kind]
    return {
        "activations": {
            "adapter": "huggingface",
            "model": str(MODEL),
            "text": str(text),
            "max_tokens": 4000,
            "context_length": 64,
            "block_sequences": 16,
            "dtype": "float32",
            "local_files_only": True,
            **chosen["activations"],
        },
        "coder": chosen["coder"],
        "training": {
            "steps": 12,
            "batch_size": 256,
            "lr": 3e-3,
            "lr_warmup_steps": 2,
            "dead_after_tokens": 1000,
            "normalize": "sqrt_d_centred",
            "normalize_tokens": 1000,
            "checkpoint_every": 6,
            "log_every": 1,
        },
        "output": {"dir": str(directory)},
    }


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some Python that the language model knows the like of."""
    file = tmp_path_factory.mktemp("text") / "text.py"
    file.write_text(Path(torch.utils.data.dataset.__file__).read_text(encoding="utf-8"))
    return file


@pytest.mark.parametrize("kind", KINDS)
def test_trained_on_the_embedded_model(kind: str, tmp_path: Path, text: Path) -> None:
    run = train(Config.from_dict(tables(kind, tmp_path, text)), progress=False)
    assert run.outcome == "finished"
    assert run.coder.d_in == (192 if kind == "relu transcoder" else 384)
    losses = [line for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 12
    assert run.metrics["fvu"] < 1
    coder = sk.load(tmp_path / "coder")
    assert coder.config == run.coder.config
    results = evaluate_run(tmp_path, max_tokens=500, batch_tokens=256)
    assert results["metrics"]["fvu"] < 1
    assert "failed" not in results
    table = top_activations(coder, run.source, n=2, max_tokens=500)
    assert (table.firings > 0).any()
    latent = int(table.firings.argmax())
    assert all(context.peak for context in contexts(table, run.source, latent))  # pyright: ignore
    if kind == "models":  # there is no one model whose loss could be measured
        assert "language_model" not in results
        return
    found = results["language_model"]
    assert all(isinstance(found[name], float) for name in ("ce_orig", "ce_sae", "ce_ablated", "ce_recovered"))
    assert found["ce_orig"] < found["ce_sae"]
    assert found["kl_sae"] > 0
    plain, steered = steer_run(tmp_path, [Clamp(latent, 1000.0)], "import os", n_tokens=8)
    assert plain != steered
    if kind in ("crosscoder", "clt"):
        with (
            pytest.raises(ShapeError, match="a coder of several layers takes a tuple of hook points on each side"),
            steer(run.source.model, coder, run.source.hook_in, Add(0, 1.0)),  # pyright: ignore
        ):
            pass


def never(*_: Any, **__: Any) -> Any:
    pytest.fail("a model was loaded")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"coder": {"n_layers": 3}}, r"n_layers = 3, but \[activations\] hook_in makes 2 layers"),
        ({"activations": {"hook_in": "model.layers.1"}}, r"n_layers = 2, but \[activations\] hook_in makes 1 layer "),
        ({"activations": {"model": [str(MODEL)] * 2}}, r"n_layers = 2, but \[activations\] hook_in makes 4 layers"),
        ({"activations": {"hook_out": MLPS[0]}, "kind": "clt"}, "hook_out makes 1 layer "),
        ({"activations": {"hook_in": [1, 2]}}, "expected a string or a list of strings"),
        ({"training": {"resample_every": 5}, "kind": "clt"}, "does not resample latents"),
        ({"coder": {"d_sae": 511}, "kind": "clt"}, "d_sae = 511, expected a multiple of n_layers = 2"),
    ],
)
def test_senseless_configurations_fail_before_a_model_is_loaded(
    changed: dict[str, Any], words: str, tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HuggingFaceModel, "load", never)
    own = tables(changed.pop("kind", "crosscoder"), tmp_path, text)
    for name, keys in changed.items():
        own[name] = {**own[name], **keys}
    with pytest.raises(ConfigError, match=words):
        Config.from_dict(own)


def test_an_unknown_hook_point_among_several_names_the_nearest(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HuggingFaceModel, "load", never)
    own = tables("clt", tmp_path, text)
    own["activations"]["hook_out"] = ["model.layers.1.mlp", "model.layers.3.mpl"]
    with pytest.raises(UnknownNameError, match=r"'model.layers.3.mpl': did you mean 'model.layers.3.mlp'"):
        train(Config.from_dict(own), progress=False)


def test_layers_of_unequal_widths(tmp_path: Path, text: Path) -> None:
    own = tables("crosscoder", tmp_path, text)
    own["activations"]["hook_in"] = ["model.layers.1", "model.layers.1.mlp.down_proj:in"]
    with pytest.raises(
        ConfigError, match="n_layers = 2, the activations are side by side in widths 192, 576: expected 2"
    ):
        train(Config.from_dict(own), progress=False)
