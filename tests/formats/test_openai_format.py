"""OpenAI's files, made by hand: computed as its Autoencoder does, or refused by name."""

from __future__ import annotations

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


def held(activation: str | None) -> Held:
    shapes = [("pre_bias", (D,)), ("encoder.weight", (N, D)), ("latent_bias", (N,)), ("decoder.weight", (D, N))]
    made: Held = dict(raw(*shapes))
    made["stats_last_nonzero"] = torch.zeros(N, dtype=torch.int64)
    if activation is not None:
        made["activation"] = activation
        made["activation_state_dict"] = {"k": K, "postact_fn": "ReLU"} if activation == "TopK" else {}
    return made


def host(t: Held, x: Tensor) -> tuple[Tensor, Tensor]:
    x, mean, std = x.double(), 0.0, 1.0
    topk = t.get("activation") == "TopK"
    if topk:
        mean = x.mean(-1, keepdim=True)
        std = (x - mean).std(-1, keepdim=True)
        x = (x - mean) / (std + 1e-5)
    z = (x - t["pre_bias"].double()) @ t["encoder.weight"].T.double() + t["latent_bias"].double()
    acts = torch.relu(top(z, K) if topk else z)
    return acts, (acts @ t["decoder.weight"].T.double() + t["pre_bias"].double()) * std + mean


@pytest.mark.parametrize("activation", ["TopK", "ReLU", None])
def test_read_and_written_again(tmp_path: Path, activation: str | None) -> None:
    made = held(activation)
    torch.save(made, tmp_path / "5.pt")
    coder = sk.load(tmp_path / "5.pt")
    assert coder.architecture == ("token_norm" if activation == "TopK" else "relu")
    x = 2 * x_rows() + 1
    same(coder, x, *host(made, x))
    sk.save(coder, tmp_path / "out" / "a.pt", format="openai")
    again = torch.load(tmp_path / "out" / "a.pt", weights_only=True)
    assert again["activation"] == (activation or "ReLU")
    for name, tensor in made.items():
        if isinstance(tensor, Tensor):
            assert torch.equal(again[name], tensor)
    assert again["activation_state_dict"] == made.get("activation_state_dict", {})
    assert torch.equal(sk.load(tmp_path / "out" / "a.pt")(x), coder(x))


BAD: list[tuple[Held, str]] = [
    ({"activation": "Identity"}, "activation = 'Identity', expected ReLU or TopK"),
    ({"activation_state_dict": {"k": K, "postact_fn": "Identity"}}, "postact_fn = 'Identity', expected ReLU"),
    ({"activation_state_dict": {}}, "'activation_state_dict.k' is None, expected a whole number"),
    ({"decoder.weight": None}, f"no tensor 'decoder.weight', expected shape ({D}, {N})"),
    ({"latent_bias": torch.ones(2)}, f"tensor 'latent_bias' has shape (2,), expected ({N},)"),
    ({"decoder.encoder.weight": torch.ones(2)}, "tensor 'decoder.encoder.weight'"),
]


@pytest.mark.parametrize(("change", "words"), BAD)
def test_refused_by_name(tmp_path: Path, change: Held, words: str) -> None:
    made = {name: value for name, value in {**held("TopK"), **change}.items() if value is not None}
    torch.save(made, tmp_path / "5.pt")
    with pytest.raises(FormatError, match=re.escape(words)):
        sk.load(tmp_path / "5.pt")


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        ("topk", {"k": K}, "topk without a layer norm; it has relu, and topk behind layer_norm"),
        ("token_norm", {"coder": "gated", "coder_config": {"sparsity_coefficient": 0.0}}, "gated behind layer_norm"),
        ("relu", {"sparsity_coefficient": 0.0}, "subtract_b_dec = False"),
    ],
)
def test_what_it_cannot_hold(tmp_path: Path, name: str, config: dict[str, Any], words: str) -> None:
    with pytest.raises(FormatError, match=f"format 'openai' cannot hold this .*: {words}"):
        sk.save(sk.create(name, d_in=D, d_sae=N, **config), tmp_path / "a.pt", format="openai")
