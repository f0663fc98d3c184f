"""dictionary_learning's files, made by hand: computed as its classes do, or refused by name; no pickle is run."""

from __future__ import annotations

import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from support.formats import D, K, N, raw, same, top, x_rows
from torch import Tensor

import sae_kernels as sk
from sae_kernels.errors import FormatError

Held = dict[str, Any]
LINEAR = (("encoder.weight", (N, D)), ("decoder.weight", (D, N)))
ROWS = (("W_enc", (D, N)), ("b_enc", (N,)), ("W_dec", (N, D)), ("b_dec", (D,)))
COUNT = {"k": torch.tensor(K, dtype=torch.int32), "threshold": torch.tensor(0.4)}


def tensors(cls: str) -> Held:
    vectors = {
        "AutoEncoder": (("encoder.bias", (N,)), ("bias", (D,))),
        "AutoEncoderNew": (("encoder.bias", (N,)), ("decoder.bias", (D,))),
        "GatedAutoEncoder": (("r_mag", (N,)), ("gate_bias", (N,)), ("mag_bias", (N,)), ("decoder_bias", (D,))),
        "AutoEncoderTopK": (("encoder.bias", (N,)), ("b_dec", (D,))),
        "BatchTopKSAE": (("encoder.bias", (N,)), ("b_dec", (D,))),
    }
    if cls in vectors:
        held = raw(*LINEAR, *vectors[cls])
        return {**held, **COUNT} if "TopK" in cls else held
    if cls == "JumpReluAutoEncoder":
        return raw(*ROWS, ("threshold", (N,)))
    return {**raw(*ROWS), **COUNT, "group_sizes": torch.tensor([8, 12, 20])}


def host(held: Held, cls: str, x: Tensor) -> tuple[Tensor, Tensor]:
    t, x = {name: v.double() for name, v in held.items()}, x.double()
    W_enc, W_dec = t.get("W_enc"), t.get("W_dec")
    if W_enc is None or W_dec is None:
        W_enc, W_dec = t["encoder.weight"].T, t["decoder.weight"].T
    b_dec = next(t[b] for b in ("bias", "decoder.bias", "decoder_bias", "b_dec") if b in t)
    inside = x if cls in ("AutoEncoderNew", "JumpReluAutoEncoder") else x - b_dec
    if cls == "GatedAutoEncoder":
        h = inside @ W_enc
        acts = (h + t["gate_bias"] > 0) * torch.relu(t["r_mag"].exp() * h + t["mag_bias"])
    else:
        z = inside @ W_enc + (t["b_enc"] if "b_enc" in t else t["encoder.bias"])
        acts = torch.relu(z)
        if cls == "AutoEncoderTopK":
            acts = top(acts, K)
        elif "threshold" in t:
            acts = acts * (z > t["threshold"])
    return acts, acts @ W_dec + b_dec


def written(folder: Path, cls: str | None, held: Any, **trainer: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if cls is not None:
        count = {"k": K} if "TopK" in cls else {}
        (folder / "config.json").write_text(json.dumps({"trainer": {"dict_class": cls, **count, **trainer}}))
    torch.save(held, folder / "ae.pt")
    return folder


CLASSES = {
    "AutoEncoder": "relu",
    "AutoEncoderNew": "relu",
    "GatedAutoEncoder": "gated",
    "JumpReluAutoEncoder": "jumprelu",
    "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "batch_topk",
    "MatryoshkaBatchTopKSAE": "matryoshka",
}


@pytest.mark.parametrize("cls", CLASSES)
def test_read_and_written_again(tmp_path: Path, cls: str) -> None:
    held = tensors(cls)
    coder = sk.load(written(tmp_path / "trainer_0", cls, held, lr=0.1))
    assert coder.architecture == CLASSES[cls]
    assert coder.metadata["trainer"]["lr"] == 0.1
    same(coder, x_rows(), *host(held, cls, x_rows()))
    sk.save(coder, tmp_path / "out", format="dictionary_learning")
    again = sk.load(tmp_path / "out" / "ae.pt")
    assert again.config == coder.config
    torch.testing.assert_close(again(x_rows()), coder(x_rows()))
    back = torch.load(tmp_path / "out" / "ae.pt", weights_only=True)
    assert {name: t.shape for name, t in back.items()} == {name: t.shape for name, t in held.items()}
    for name, tensor in held.items():
        torch.testing.assert_close(back[name], tensor, check_dtype=name != "group_sizes")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["trainer"]["dict_class"] == cls


@pytest.mark.parametrize("cls", CLASSES)
def test_without_a_configuration(tmp_path: Path, cls: str) -> None:
    path = written(tmp_path, None, tensors(cls))
    if cls in ("AutoEncoderTopK", "BatchTopKSAE"):
        with pytest.raises(FormatError, match=r"ae.pt: AutoEncoderTopK or BatchTopKSAE\? .*config.json with"):
            sk.load(path)
    else:
        same(sk.load(path), x_rows(), *host(tensors(cls), cls, x_rows()))


def test_an_unset_threshold_keeps_what_is_positive(tmp_path: Path) -> None:
    held = {**tensors("BatchTopKSAE"), "threshold": torch.tensor(-1.0)}
    same(sk.load(written(tmp_path, "BatchTopKSAE", held)), x_rows(), *host(held, "BatchTopKSAE", x_rows()))


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/sae_kernels_was_here",)


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    for held in (Hostile(), {"encoder.weight": Hostile()}):
        path = written(tmp_path, "AutoEncoder", held)
        with pytest.raises(FormatError, match=r"ae.pt \(\d+ bytes\): not a readable file of tensors alone"):
            sk.load(path)
        (path / "ae.pt").write_bytes(pickle.dumps(held))
        with pytest.raises(FormatError, match="not a readable file of tensors alone"):
            sk.load(path)
    assert not Path("/tmp/sae_kernels_was_here").exists()


BAD: list[tuple[str | None, dict[str, Any], dict[str, Any], str]] = [
    ("IdentityDict", {}, {}, "dict_class = 'IdentityDict': expected one of AutoEncoder"),
    ("AutoEncoderTopK", {}, {"k": 7}, f"k = 7: {{file}} has {K}"),
    ("AutoEncoderTopK", {}, {"dict_size": 7}, f"dict_size = 7: {{file}} has {N}"),
    ("AutoEncoderTopK", {"b_dec": torch.ones(3)}, {}, f"tensor 'b_dec' has shape (3,), expected ({D},)"),
    ("AutoEncoderTopK", {"b_dec": None}, {}, "no tensor 'b_dec'"),
    ("AutoEncoderTopK", {"b_dec": [1.0]}, {}, "'b_dec' is a list, expected a tensor"),
    ("AutoEncoderTopK", {"k": torch.ones(2)}, {}, "expected a whole number"),
    ("AutoEncoderTopK", {"more": torch.ones(2)}, {}, "tensor 'more', (2,) float32 cpu, is none that a AutoEncoderTopK"),
    ("MatryoshkaBatchTopKSAE", {"group_sizes": torch.ones(2)}, {}, "expected (n,) integers"),
    ("MatryoshkaBatchTopKSAE", {"group_sizes": torch.tensor([8, 8])}, {}, f"expected the last to be d_sae = {N}"),
]


@pytest.mark.parametrize(("cls", "change", "trainer", "words"), BAD)
def test_refused_by_name(tmp_path: Path, cls: str, change: Held, trainer: dict[str, Any], words: str) -> None:
    held = {**tensors(cls if cls in CLASSES else "AutoEncoder"), **change}
    path = written(tmp_path, cls, {name: t for name, t in held.items() if t is not None}, **trainer)
    with pytest.raises(FormatError, match=re.escape(words.format(file=path / "ae.pt"))) as error:
        sk.load(path)
    assert str(tmp_path) in str(error.value)


def test_truncated(tmp_path: Path) -> None:
    path = written(tmp_path, "AutoEncoder", tensors("AutoEncoder"))
    whole = (path / "ae.pt").read_bytes()
    for left in (0, 10, 3000, len(whole) - 1):
        (path / "ae.pt").write_bytes(whole[:left])
        with pytest.raises(FormatError, match=rf"ae.pt \({left} bytes\): not a readable file"):
            sk.load(path)
    (path / "ae.pt").unlink()
    with pytest.raises(FormatError, match="no such file"):
        sk.load(path)
    torch.save([1], path / "ae.pt")
    with pytest.raises(FormatError, match="holds a list, expected a dict of tensors by name"):
        sk.load(path)


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        ("transcoder", {"k": K}, "it has relu, gated, jumprelu, topk, batch_topk, matryoshka"),
        ("topk", {"k": K, "subtract_b_dec": False}, "subtract_b_dec = False; AutoEncoderTopK has it the other way"),
        ("jumprelu", {"sparsity_coefficient": 0.0, "subtract_b_dec": True}, "subtract_b_dec = True"),
        ("batch_topk", {"k": K}, "its running threshold is not set yet"),
    ],
)
def test_what_it_cannot_hold(tmp_path: Path, name: str, config: dict[str, Any], words: str) -> None:
    with pytest.raises(FormatError, match=f"format 'dictionary_learning' cannot hold this '{name}': {words}"):
        sk.save(sk.create(name, d_in=D, d_sae=N, **config), tmp_path / "out", format="dictionary_learning")
