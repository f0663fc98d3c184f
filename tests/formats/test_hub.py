"""Coders from the hub, offline: out of a cache of huggingface_hub's layout made here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import sae_kernels as sk
from sae_kernels.cli import main
from sae_kernels.errors import FormatError
from sae_kernels.formats import hub

constants = pytest.importorskip("huggingface_hub.constants", reason="huggingface_hub is not installed")
OLD, NEW = "a" * 40, "b" * 40
D, N, K = 8, 20, 3


def coder(seed: int) -> sk.SparseCoder:
    return sk.create("topk", d_in=D, d_sae=N, k=K, seed=seed)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """owner/saes: a native coder at the root and two in folders; `main` is NEW, the tag v1 is OLD."""
    home = tmp_path / "hub"
    repo = home / "models--owner--saes"
    for name, revision in (("main", NEW), ("v1", OLD)):
        (repo / "refs").mkdir(parents=True, exist_ok=True)
        (repo / "refs" / name).write_text(revision)
    for seed, revision in ((1, OLD), (2, NEW)):
        snapshot = repo / "snapshots" / revision
        sk.save(coder(seed), snapshot)
        sk.save(coder(seed + 10), snapshot / "layers.3", format="sparsify")
        sk.save(coder(seed + 20), snapshot / "blocks" / "4" / "x", format="sae_lens")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return home


CASES = [
    ("hf:owner/saes", None, 2),
    ("hf://owner/saes", None, 2),
    ("hf:owner/saes/", None, 2),
    ("hf:owner/saes@v1", None, 1),
    (f"hf:owner/saes@{OLD}", None, 1),
    ("hf:owner/saes", "v1", 1),
    ("hf:owner/saes/layers.3", None, 12),
    ("hf:owner/saes/layers.3@v1", None, 11),
    ("hf:owner/saes/blocks/4/x", "v1", 21),
]


@pytest.mark.parametrize(("reference", "revision", "seed"), CASES)
def test_found_in_the_cache(reference: str, revision: str | None, seed: int) -> None:
    for only in (True, False):  # HF_HUB_OFFLINE says so, too
        found = sk.load(reference, revision=revision, local_files_only=only)
        assert torch.equal(found.W_dec, coder(seed).W_dec)
        assert not found.training


BAD = [
    ("hf:owner", None, r"'hf:owner': expected hf:owner/name\[/folder or file\]\[@revision\]"),
    ("hf:owner/saes/../../x", None, "a folder of the repository expected"),
    ("hf:owner/saes@v1", "main", "names a revision, and revision = 'main' another"),
    ("hf:owner/saes/layers.9", None, "the repository has no 'layers.9'"),
    ("hf:owner/nothing", None, r"'hf:owner/nothing' \(revision main\): "),
    ("hf:owner/saes@v2", None, r"'hf:owner/saes@v2' \(revision v2\): "),
]


@pytest.mark.parametrize(("reference", "revision", "words"), BAD)
def test_refused(reference: str, revision: str | None, words: str) -> None:
    with pytest.raises(FormatError, match=words):
        sk.load(reference, revision=revision)


def test_only_what_is_asked_for_is_fetched(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    asked = []

    def snapshot_download(repo: str, **options: object) -> str:
        asked.append((repo, options["revision"], options["allow_patterns"]))
        return str(cache / "models--owner--saes" / "snapshots" / NEW)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    sk.load("hf:owner/saes/layers.3@v1")
    sk.load("hf:owner/saes")
    hub.fetch("hf:owner/saes/layers.3/sae.safetensors")
    assert asked[0] == ("owner/saes", "v1", ["layers.3", "layers.3/*"])
    assert asked[1] == ("owner/saes", None, list(hub.ROOT))
    assert asked[2][2][-4:] == [f"layers.3/{name}" for name in hub.CONFIGS]


def test_without_huggingface_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FormatError, match=r"pip install sae-kernels\[hub\]"):
        sk.load("hf:owner/saes")


def test_a_revision_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="revision and local_files_only are for hf:owner/name"):
        sk.load(tmp_path, revision="main")


def test_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lens, back = tmp_path / "lens", tmp_path / "back"
    assert main(["convert", "hf:owner/saes/layers.3@v1", str(lens), "--format", "sae_lens"]) == 0
    assert "topk, d_in 8, d_sae 20, as sae_lens" in capsys.readouterr().out
    assert json.loads((lens / "cfg.json").read_text())["architecture"] == "topk"
    assert main(["convert", str(lens), str(back), "--from", "sae_lens", "--format", "sparsify"]) == 0
    torch.testing.assert_close(sk.load(back).W_enc, coder(11).W_enc)
    assert main(["convert", str(lens), str(tmp_path / "no"), "--format", "circuit_tracer"]) == 1
    assert "format 'circuit_tracer' cannot hold this 'topk'" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "nothing"), str(tmp_path / "no")]) == 1
    assert main(["convert", str(lens), str(tmp_path / "no"), "--format", "sae_len"]) == 1
    assert "did you mean 'sae_lens'" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
    with pytest.raises(SystemExit):
        main(["convert", "--help"])
    assert "example:" in capsys.readouterr().out
