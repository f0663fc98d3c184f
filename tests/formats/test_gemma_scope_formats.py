"""Gemma Scope's files, both generations, made by hand: computed as its JumpReLU, or refused by name."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import save_file
from support.formats import D_OUT, D, N, Raw, raw, same, written, x_rows
from torch import Tensor

import sae_kernels as sk
from bench import cases
from sae_kernels.errors import FormatError

L = 3
NAMES = "config.json", "params.safetensors"


def tensors(d_out: int = D, skip: bool = False) -> Raw:
    shapes = [("W_enc", (D, N)), ("b_enc", (N,)), ("threshold", (N,)), ("W_dec", (N, d_out)), ("b_dec", (d_out,))]
    return raw(*shapes, *([("affine_skip_connection", (D, d_out))] if skip else []))


def second(held: Raw) -> Raw:
    return {name.replace("W_", "w_"): t for name, t in held.items()}


def host(held: Raw, x: Tensor) -> tuple[Tensor, Tensor]:
    t, x = {name: v.double() for name, v in held.items()}, x.double()
    z = x @ t["W_enc"] + t["b_enc"]
    acts = (z > t["threshold"]) * torch.relu(z)
    out = acts @ t["W_dec"] + t["b_dec"]
    return acts, out + x @ t["affine_skip_connection"] if "affine_skip_connection" in t else out


def npz(path: Path, held: Raw) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    numpy.savez(path, **{name: t.numpy() for name, t in held.items()})
    return path


def test_the_first(tmp_path: Path) -> None:
    held = tensors()
    held["threshold"][:2] = torch.tensor([0.0, -0.5])
    path = npz(tmp_path / "layer_20" / "params.npz", held)
    for at in (path, path.parent):
        coder = sk.load(at)
        assert coder.architecture == "jumprelu"
        same(coder, x_rows(), *host(held, x_rows()))
    wide = tensors(D_OUT)
    coder = sk.load(npz(tmp_path / "average_l0_70.npz", wide))
    assert coder.architecture == "jumprelu_transcoder"
    same(coder, x_rows(), *host(wide, x_rows()))


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("run",)


def test_the_first_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = npz(tmp_path / "params.npz", tensors())
    whole = path.read_bytes()
    for left in (0, 30, 2000, len(whole) - 1):
        path.write_bytes(whole[:left])
        with pytest.raises(FormatError, match=rf"params.npz \({left} bytes\): not a readable .npz file"):
            sk.load(path)
    numpy.savez(path, W_enc=numpy.array([Hostile()], dtype=object))
    with pytest.raises(FormatError, match=r"not a readable .npz file of plain arrays"):
        sk.load(path)
    path.write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(FormatError, match=r"not a readable .npz file of plain arrays"):
        sk.load(path)
    assert capsys.readouterr().out == ""
    for change, words in (
        ({"b_enc": torch.ones(3)}, f"tensor 'b_enc' has shape (3,), expected ({N},)"),
        ({"more": torch.ones(3)}, "tensor 'more', (3,) float32 cpu, is none that a Gemma Scope SAE has"),
    ):
        with pytest.raises(FormatError, match=re.escape(words)):
            sk.load(npz(path, {**tensors(), **change}))
    held = tensors()
    del held["threshold"]
    with pytest.raises(FormatError, match=r"params.npz: no tensor 'threshold', expected shape \(40,\)"):
        sk.load(npz(path, held))
    with pytest.raises(FormatError, match="can be read, not written"):
        sk.save(sk.create("topk", d_in=D, d_sae=N, k=3), tmp_path / "out", format="gemma_scope")


KINDS = {
    "sae": (tensors(), {}, "jumprelu"),
    "transcoder": (tensors(), {"hf_hook_point_out": "model.layers.3.mlp.output"}, "jumprelu_transcoder"),
    "wide": (tensors(D_OUT), None, "jumprelu_transcoder"),
    "skip": (tensors(skip=True), {"affine_connection": True}, "jumprelu_transcoder"),
    "wide skip": (tensors(D_OUT, skip=True), {}, "jumprelu_transcoder"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_second(tmp_path: Path, kind: str) -> None:
    held, config, name = KINDS[kind]
    config = None if config is None else {"architecture": "jump_relu", **config}
    path = written(tmp_path / "x", config, second(held), NAMES)
    for at in (path, path / NAMES[1]):
        coder = sk.load(at)
        assert coder.architecture == name
        same(coder, x_rows(), *host(held, x_rows()))
        assert coder.metadata == (config or {})


def layers(folder: Path, skip: bool, d_out: int = 5) -> list[Raw]:
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for i in range(L):
        shapes = [("w_enc", (4, 10)), ("b_enc", (10,)), ("threshold", (10,)), ("w_dec", (10, L, d_out))]
        names = [*shapes, ("b_dec", (d_out,)), *([("affine_skip_connection", (4, d_out))] if skip else [])]
        held = {name: cases.normal(*s, seed=100 * i + j, scale=0.4) for j, (name, s) in enumerate(names)}
        held["threshold"] = held["threshold"].abs()
        held["w_dec"][:, :i] = 0
        save_file(held, folder / f"params_layer_{i}.safetensors")
        made.append(held)
    return made


@pytest.mark.parametrize("skip", [True, False])
def test_cross_layer_transcoders(tmp_path: Path, skip: bool) -> None:
    made = layers(tmp_path / "clt", skip)
    coder = sk.load(tmp_path / "clt")
    assert coder.architecture == "clt"
    x = cases.normal(20, L * 4, seed=5)
    acts, out = [], torch.zeros(20, L, 5, dtype=torch.float64)
    for i, held in enumerate(made):
        t, inside = {name: v.double() for name, v in held.items()}, x[:, 4 * i : 4 * i + 4].double()
        z = inside @ t["w_enc"] + t["b_enc"]
        acts.append((z > t["threshold"]) * torch.relu(z))
        out += torch.einsum("ns,sld->nld", acts[-1], t["w_dec"])
        out[:, i] += t["b_dec"] + (inside @ t["affine_skip_connection"] if skip else 0)
    same(coder, x, torch.cat(acts, 1), out.flatten(1))
    with pytest.raises(FormatError, match=r"one layer of a cross-layer transcoder; load the folder of all 3 layers"):
        sk.load(tmp_path / "clt" / "params_layer_1.safetensors")


def test_cross_layer_transcoders_damaged(tmp_path: Path) -> None:
    made = layers(tmp_path, False)
    file = tmp_path / "params_layer_2.safetensors"
    made[2]["w_dec"][3, 0] = 1.0
    save_file(made[2], file)
    with pytest.raises(FormatError, match=r"layer_2.safetensors: tensor 'w_dec' writes to layers before 2"):
        sk.load(tmp_path)
    save_file({**made[2], "b_enc": torch.ones(9)}, file)
    with pytest.raises(FormatError, match=r"layer_2.safetensors: tensor 'b_enc' has shape \(9,\), expected \(10,\)"):
        sk.load(tmp_path)
    file.unlink()
    with pytest.raises(FormatError, match=r"'w_dec' has shape \(10, 3, 5\), expected \(latents, 2, features\)"):
        sk.load(tmp_path)
    written(tmp_path / "a", {"architecture": "gated"}, second(tensors()), NAMES)
    with pytest.raises(FormatError, match="architecture = 'gated': expected one of jump_relu"):
        sk.load(tmp_path / "a")
