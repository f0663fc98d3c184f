"""sparsify's files, made by hand: computed as sparsify computes them, or refused by name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from support.formats import D, K, N, Raw, raw, same, top, written, x_rows
from torch import Tensor

import sae_kernels as sk
from sae_kernels.errors import FormatError

NAMES = "cfg.json", "sae.safetensors"
BASE = {"activation": "topk", "expansion_factor": 32, "num_latents": N, "k": K, "d_in": D, "normalize_decoder": False}


def tensors(skip: bool = False) -> Raw:
    shapes = [("encoder.weight", (N, D)), ("encoder.bias", (N,)), ("W_dec", (N, D)), ("b_dec", (D,))]
    return raw(*shapes, *([("W_skip", (D, D))] if skip else []))


def host(t: Raw, x: Tensor, transcode: bool) -> tuple[Tensor, Tensor]:
    t, x = {name: v.double() for name, v in t.items()}, x.double()
    z = torch.relu((x if transcode else x - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"])
    acts = top(z, K)
    out = acts @ t["W_dec"] + t["b_dec"]
    return acts, out + x @ t["W_skip"].T if "W_skip" in t else out


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("transcode", [True, False])
def test_read_and_written_again(tmp_path: Path, transcode: bool, skip: bool) -> None:
    held = tensors(skip)
    config = {**BASE, "transcode": transcode, "skip_connection": skip, "multi_topk": True}
    coder = sk.load(written(tmp_path / "in", config, held, NAMES))
    assert coder.architecture == ("transcoder" if transcode or skip else "topk")
    assert coder.config.multi_topk
    assert not coder.config.normalize_decoder
    same(coder, x_rows(), *host(held, x_rows(), transcode))
    sk.save(coder, tmp_path / "out", format="sparsify")
    again = sk.load(tmp_path / "out")
    assert again.config == coder.config
    assert torch.equal(again(x_rows()), coder(x_rows()))


def test_widths_and_folders_of_hook_points(tmp_path: Path) -> None:
    config = {**BASE, "num_latents": 0, "expansion_factor": 2}
    held = {name: t[: 2 * D] if t.shape[0] == N else t for name, t in tensors().items()}
    assert sk.load(written(tmp_path / "layers.3", config, held, NAMES)).d_sae == 2 * D
    written(tmp_path / "layers.10.mlp", BASE, tensors(), NAMES)
    with pytest.raises(FormatError, match=r"holds several coders; load one of layers.10.mlp, layers.3, e.g. "):
        sk.load(tmp_path)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"activation": "groupmax"}, "activation = 'groupmax': expected one of topk"),
    ({"signed": True}, "signed = True: expected false"),
    ({"d_in": None}, "no key 'd_in'"),
    ({"num_latents": N + 1}, f"tensor 'encoder.weight' has shape ({N}, {D}), expected ({N + 1}, {D})"),
    ({"k": "many"}, "k = 'many': expected a positive integer"),
    ({"skip_connection": True}, f"no tensor 'W_skip', expected shape ({D}, {D})"),
]


@pytest.mark.parametrize(("change", "words"), BAD)
def test_refused_by_name(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(FormatError, match=re.escape(words)) as error:
        sk.load(written(tmp_path, {**BASE, **change}, tensors(), NAMES))
    assert str(tmp_path) in str(error.value)


def test_a_skip_that_the_configuration_denies(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"tensor 'W_skip', \(12, 12\) float32 cpu, is none that"):
        sk.load(written(tmp_path, BASE, tensors(skip=True), NAMES))


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        ("jumprelu", {"sparsity_coefficient": 1.0}, "it has topk, transcoder and skip_transcoder"),
        ("transcoder", {"k": K, "d_target": 9}, "d_target = 9"),
        ("transcoder", {"activation": "relu", "sparsity_coefficient": 1.0}, "activation = 'relu'"),
    ],
)
def test_what_it_cannot_hold(tmp_path: Path, name: str, config: dict[str, Any], words: str) -> None:
    with pytest.raises(FormatError, match=f"format 'sparsify' cannot hold this '{name}': {words}"):
        sk.save(sk.create(name, d_in=D, d_sae=N, **config), tmp_path / "out", format="sparsify")
