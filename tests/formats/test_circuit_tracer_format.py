"""circuit-tracer's files, made by hand: computed as it computes them, or refused by name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.formats import D, N, Raw, raw, same, x_rows
from torch import Tensor

import sae_kernels as sk
from bench import cases
from sae_kernels.errors import FormatError

THETA = "activation_function.threshold"
L = 3


def tensors(jump: bool, skip: bool) -> Raw:
    shapes = [("W_enc", (N, D)), ("b_enc", (N,)), ("W_dec", (N, D)), ("b_dec", (D,))]
    shapes += [(THETA, (N,))] if jump else []
    return raw(*shapes, *([("W_skip", (D, D))] if skip else []))


def host(held: Raw, x: Tensor) -> tuple[Tensor, Tensor]:
    t, x = {name: v.double() for name, v in held.items()}, x.double()
    z = x @ t["W_enc"].T + t["b_enc"]
    acts = z * (z > t[THETA]) if THETA in t else torch.relu(z)
    out = acts @ t["W_dec"] + t["b_dec"]
    return acts, out + x @ t["W_skip"].T if "W_skip" in t else out


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("jump", [True, False])
def test_read_and_written_again(tmp_path: Path, jump: bool, skip: bool) -> None:
    held = tensors(jump, skip)
    save_file(held, tmp_path / "layer_7.safetensors")
    for at in (tmp_path, tmp_path / "layer_7.safetensors"):
        coder = sk.load(at)
        assert coder.architecture == ("jumprelu_transcoder" if jump else "transcoder")
        same(coder, x_rows(), *host(held, x_rows()))
    coder.metadata["model_name"] = "google/gemma-2-2b"
    sk.save(coder, tmp_path / "out", format="circuit_tracer")
    config = json.loads((tmp_path / "out" / "config.yaml").read_text())
    assert config["model_kind"] == "transcoder_set"
    assert config["model_name"] == "google/gemma-2-2b"
    sk.save(coder, tmp_path / "set" / "layer_1.safetensors", format="circuit_tracer")
    for file in (tmp_path / "out" / "layer_0.safetensors", tmp_path / "set" / "layer_1.safetensors"):
        again = load_file(file)
        assert set(again) == set(held)
        for name, tensor in held.items():
            torch.testing.assert_close(again[name], tensor)
    save_file(held, tmp_path / "layer_10.safetensors")
    with pytest.raises(FormatError, match=r"holds 2 transcoders, layer_7.safetensors, layer_10.safetensors; load one"):
        sk.load(tmp_path)


def cross_layer(folder: Path, jump: bool) -> None:
    folder.mkdir(exist_ok=True)
    for i in range(L):
        held = {f"W_enc_{i}": (10, 4), f"b_enc_{i}": (10,), f"b_dec_{i}": (4,)}
        encoder = {name: cases.normal(*s, seed=9 * i + j, scale=0.4) for j, (name, s) in enumerate(held.items())}
        if jump:
            encoder[f"threshold_{i}"] = torch.full((10,), 0.2 * i)
        save_file(encoder, folder / f"W_enc_{i}.safetensors")
        decoder = cases.normal(10, L - i, 4, seed=70 + i)
        save_file({f"W_dec_{i}": decoder}, folder / f"W_dec_{i}.safetensors")


@pytest.mark.parametrize("jump", [True, False])
def test_cross_layer_transcoders(tmp_path: Path, jump: bool) -> None:
    cross_layer(tmp_path / "in", jump)
    coder = sk.load(tmp_path / "in")
    x = cases.normal(20, L * 4, seed=5)
    acts, out = [], torch.zeros(20, L, 4, dtype=torch.float64)
    for i in range(L):
        t = {name: v.double() for name, v in load_file(tmp_path / "in" / f"W_enc_{i}.safetensors").items()}
        z = x[:, 4 * i : 4 * i + 4].double() @ t[f"W_enc_{i}"].T + t[f"b_enc_{i}"]
        acts.append(z * (z > t.get(f"threshold_{i}", torch.zeros(1))))
        decoder = load_file(tmp_path / "in" / f"W_dec_{i}.safetensors")[f"W_dec_{i}"].double()
        out[:, i:] += torch.einsum("ns,sld->nld", acts[-1], decoder)
        out[:, i] += t[f"b_dec_{i}"]
    same(coder, x, torch.cat(acts, 1), out.flatten(1))
    sk.save(coder, tmp_path / "out", format="circuit_tracer")
    files = sorted(file.name for file in (tmp_path / "in").iterdir())
    assert sorted(file.name for file in (tmp_path / "out").glob("*.safetensors")) == files
    for name in files:
        mine, theirs = (load_file(tmp_path / folder / name) for folder in ("out", "in"))
        assert set(mine) == set(theirs)
        for key, tensor in theirs.items():
            torch.testing.assert_close(mine[key], tensor, rtol=1e-6, atol=0)
    assert json.loads((tmp_path / "out" / "config.yaml").read_text())["model_kind"] == "cross_layer_transcoder"
    (tmp_path / "in" / "W_dec_1.safetensors").unlink()
    with pytest.raises(FormatError, match=r"W_dec_1.safetensors \(no such file\)"):
        sk.load(tmp_path / "in")


BAD: list[tuple[dict[str, Any], str]] = [
    ({THETA: torch.full((N,), -0.1)}, f"tensor '{THETA}' has {N} negative thresholds"),
    ({THETA: torch.ones(3)}, f"tensor '{THETA}' has shape (3,), expected"),
    ({"W_skip": torch.ones(3, 3)}, f"tensor 'W_skip' has shape (3, 3), expected ({D}, {D})"),
    ({"W_dec": torch.ones(N)}, "tensor 'W_dec' is (40,) float32 cpu, expected 2 dimensions"),
    ({"log_thresholds": torch.ones(N)}, "tensor 'log_thresholds'"),
]


@pytest.mark.parametrize(("change", "words"), BAD)
def test_refused_by_name(tmp_path: Path, change: Raw, words: str) -> None:
    save_file({**tensors(False, False), **change}, tmp_path / "layer_0.safetensors")
    with pytest.raises(FormatError, match=re.escape(words)) as error:
        sk.load(tmp_path)
    assert "layer_0.safetensors" in str(error.value)


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        ("transcoder", {"k": 5}, "activation = 'topk'; its files have ReLU and JumpReLU"),
        ("topk", {"k": 5}, "it has transcoder, skip_transcoder, jumprelu_transcoder and clt"),
        ("jumprelu_transcoder", {"sparsity_coefficient": 0.0, "d_target": 9}, "d_target = 9"),
        ("clt", {"sparsity_coefficient": 0.0, "n_layers": 2, "skip": True}, "skip = True"),
    ],
)
def test_what_it_cannot_hold(tmp_path: Path, name: str, config: dict[str, Any], words: str) -> None:
    with pytest.raises(FormatError, match=f"format 'circuit_tracer' cannot hold this '{name}': {re.escape(words)}"):
        sk.save(sk.create(name, d_in=D, d_sae=N, **config), tmp_path / "out", format="circuit_tracer")
