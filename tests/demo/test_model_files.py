"""The language model that comes along: its files, and that it has learned the genre."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open

import sae_kernels.demo
from sae_kernels.demo import corpus

transformers = pytest.importorskip("transformers")

FOLDER = Path(sae_kernels.demo.__file__).parent / "model"
CONTEXT = 256
HELD_OUT_CHARS = 30_000
HELD_OUT_BOUND = 3.0  # nats/token; 2.47 on the files of Python 3.11, and other versions have other files


@pytest.fixture(scope="module")
def model() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", _no_network)
        loaded = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, local_files_only=True)
    return loaded.eval()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", _no_network)
        return transformers.AutoTokenizer.from_pretrained(FOLDER, local_files_only=True)


def _no_network(*_: object) -> None:
    raise AssertionError("the model was to be read from the package, not from the network")


def test_the_folder_is_small_and_complete() -> None:
    sizes = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert sizes.keys() == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(sizes.values()) <= 10_000_000


def test_weights_on_disk_are_bfloat16_and_tied() -> None:
    with safe_open(FOLDER / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}  # noqa: SIM118
        assert "lm_head.weight" not in weights.keys()  # noqa: SIM118
    assert json.loads((FOLDER / "config.json").read_text())["dtype"] == "bfloat16"


def test_the_model_is_a_standard_one(model: Any) -> None:
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.config.max_position_embeddings == CONTEXT
    assert model.config.hidden_size >= 192
    assert 2_000_000 < sum(p.numel() for p in model.parameters()) < 5_000_000
    for name in ("model.layers.3", "model.layers.3.mlp"):
        assert model.get_submodule(name)


def test_the_card_states_figures_and_licence() -> None:
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert "PSF-2.0" in card
    assert re.search(r"\*\*\d\.\d{4} nats/token, \d\.\d{4} bits/byte\*\*", card)
    assert "{{" not in card


@pytest.mark.parametrize(
    "text",
    [
        "def f(self, *args):\n    return {'a': 1}\n",
        "\t\tmixed  \n \n\n   indentation",
        "naïve café — 你好 🐍",
        "\x00\x7f\r\n",
        "",
    ],
)
def test_tokenizer_round_trip(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.bos_token_id not in ids[1:]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_tokenizer_fits_the_corpus(tokenizer: Any) -> None:
    text = "".join(text for _, text in corpus.texts("heldout", HELD_OUT_CHARS))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert len(text) / len(ids) > 3.0


@torch.no_grad()
def test_held_out_loss(model: Any, tokenizer: Any) -> None:
    """In windows of 255 tokens after one BOS, as the model was trained and its card was measured."""
    nats, tokens = 0.0, 0
    for _, text in corpus.texts("heldout", HELD_OUT_CHARS):
        for window in torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"]).split(CONTEXT - 1):
            ids = F.pad(window, (1, 0), value=tokenizer.bos_token_id)
            logits = model(input_ids=ids[None]).logits[0, :-1].float()
            nats += float(F.cross_entropy(logits, window, reduction="sum"))
            tokens += len(window)
    assert nats / tokens < HELD_OUT_BOUND


@torch.no_grad()
def test_it_writes_python(model: Any, tokenizer: Any) -> None:
    torch.manual_seed(0)
    prompt = torch.tensor([tokenizer("class Reader:\n    def __init__(self")["input_ids"]])
    ids = model.generate(prompt.expand(4, -1), max_new_tokens=80)
    texts = tokenizer.batch_decode(ids[:, prompt.shape[1] :], skip_special_tokens=True)
    assert sum("self." in text and "    def " in text for text in texts) >= 2, texts
