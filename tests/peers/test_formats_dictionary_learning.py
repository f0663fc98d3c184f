"""dictionary_learning's files: ours loaded there and its own loaded here compute the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.peer import peer

import sae_kernels as sk
from bench import cases

pytestmark = pytest.mark.peers
dictionary = peer("dictionary_learning.dictionary", "dictionary-learning")
top_k = peer("dictionary_learning.trainers.top_k", "dictionary-learning")
batch_top_k = peer("dictionary_learning.trainers.batch_top_k", "dictionary-learning")
matryoshka = peer("dictionary_learning.trainers.matryoshka_batch_top_k", "dictionary-learning")

D, N, K, ROWS = 12, 48, 5, 64
MADE = {
    "AutoEncoder": lambda: dictionary.AutoEncoder(D, N),
    "AutoEncoderNew": lambda: dictionary.AutoEncoderNew(D, N),
    "GatedAutoEncoder": lambda: dictionary.GatedAutoEncoder(D, N),
    "JumpReluAutoEncoder": lambda: dictionary.JumpReluAutoEncoder(D, N),
    "AutoEncoderTopK": lambda: top_k.AutoEncoderTopK(D, N, K),
    "BatchTopKSAE": lambda: batch_top_k.BatchTopKSAE(D, N, K),
    "MatryoshkaBatchTopKSAE": lambda: matryoshka.MatryoshkaBatchTopKSAE(D, N, K, [8, 16, 24]),
}


def made(cls: str) -> Any:
    host = MADE[cls]()
    with torch.no_grad():
        for i, (name, p) in enumerate(host.named_parameters()):
            new = cases.normal(*p.shape, seed=30 + i, scale=0.4)
            p.copy_(new.abs() if name == "threshold" else new)
        if "TopK" in cls:
            host.threshold.fill_(0.4)
    return host.eval()


def compare(mine: sk.SparseCoder, host: Any, cls: str) -> None:
    x = cases.normal(ROWS, D, seed=3)
    torch.testing.assert_close(mine.encode(x).dense(), host.encode(x), atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(mine(x), host(x), atol=2e-5, rtol=2e-5)
    if cls in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
        mine.train()
        acts = host.encode(x, use_threshold=False)
        torch.testing.assert_close(mine.encode(x).dense(), acts, atol=2e-5, rtol=2e-5)
        mine.eval()


@pytest.mark.parametrize("cls", MADE)
def test_there_and_back(tmp_path: Path, cls: str) -> None:
    host = made(cls)
    folder = tmp_path / "trainer_0"
    folder.mkdir()
    torch.save(host.state_dict(), folder / "ae.pt")
    trainer = {
        "dict_class": cls,
        "activation_dim": D,
        "dict_size": N,
        "lr": 1e-3,
        **({"k": K} if "TopK" in cls else {}),
    }
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {}}))
    mine = sk.load(folder)
    compare(mine, host, cls)
    sk.save(mine, tmp_path / "ours", format="dictionary_learning")
    again = type(host).from_pretrained(
        str(tmp_path / "ours" / "ae.pt"), **({"normalize_decoder": False} if cls == "AutoEncoder" else {})
    )
    compare(mine, again.eval(), cls)
    assert list(again.state_dict()) == list(host.state_dict())
    for name, tensor in again.state_dict().items():
        torch.testing.assert_close(tensor, host.state_dict()[name])


def test_an_unset_threshold(tmp_path: Path) -> None:
    host = made("BatchTopKSAE")
    host.threshold.fill_(-1.0)
    torch.save(host.state_dict(), tmp_path / "ae.pt")
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": "BatchTopKSAE", "k": K}}))
    compare(sk.load(tmp_path), host, "AutoEncoderTopK")
