"""The native format: what is saved comes back; what is damaged says where; a failing write leaves the old one."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import sae_kernels as sk
from sae_kernels import files
from sae_kernels.errors import FormatError, UnknownNameError

CONFIG, WEIGHTS = "config.json", "weights.safetensors"


def make(name: str = "topk", **config: object) -> sk.SparseCoder:
    return sk.create(name, d_in=8, d_sae=20, k=3, seed=0, **config)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    sk.save(make(), tmp_path / "sae")
    return tmp_path / "sae"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize(
    "coder", [("topk", {}), ("transcoder", {"d_target": 5, "skip": True, "k_aux": 2}), ("transcoder", {})], ids=str
)
def test_round_trip(tmp_path: Path, coder: tuple[str, dict], dtype: torch.dtype) -> None:
    original = make(coder[0], **coder[1]).to(dtype)
    path = tmp_path / "new" / "folder"
    sk.save(original, path)
    back = sk.load(path)
    assert type(back) is type(original)
    assert back.config == original.config
    assert list(back.state_dict()) == list(original.state_dict())
    for key, tensor in back.state_dict().items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, original.state_dict()[key])
    assert all(p.requires_grad for p in back.parameters())
    x = torch.ones(3, 8, dtype=dtype)
    assert torch.equal(back(x), original(x))
    assert {p.name for p in path.iterdir()} == {CONFIG, WEIGHTS}


def test_a_strided_parameter_is_saved(tmp_path: Path) -> None:
    coder = make()
    coder.W_enc = torch.nn.Parameter(coder.W_enc.detach().mT.contiguous().mT)
    sk.save(coder, tmp_path / "sae")
    assert torch.equal(sk.load(tmp_path / "sae").W_enc, coder.W_enc)


def test_saving_again_replaces(saved: Path) -> None:
    coder = make("transcoder")
    sk.save(coder, saved)
    assert type(sk.load(saved)) is type(coder)
    assert [p.name for p in saved.parent.iterdir()] == ["sae"]


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"nothing: no such file or directory"):
        sk.load(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FormatError, match=r"none of the formats \[.*'sae_kernels'.*\] recognises it"):
        sk.load(tmp_path / "empty")


@pytest.mark.parametrize("content", ["", "not json", "[]", "null", '{"format": "other"}', '{"a": 1}', "\x00\xff"])
def test_a_foreign_folder_is_not_recognised(tmp_path: Path, content: str) -> None:
    (tmp_path / CONFIG).write_text(content, encoding="latin-1")
    with pytest.raises(FormatError, match="recognises it"):
        sk.load(tmp_path)


def test_unknown_formats_name_the_nearest(saved: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown format 'sae_kernel': did you mean 'sae_kernels'"):
        sk.load(saved, format="sae_kernel")
    with pytest.raises(UnknownNameError, match="unknown format 'pickle'"):
        sk.save(make(), saved, format="pickle")


@pytest.mark.parametrize("left", [0, 3, 8, 40, 500, -1])
def test_truncated_weights(saved: Path, left: int) -> None:
    whole = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes(whole[:left])
    with pytest.raises(FormatError, match=rf"{WEIGHTS} \({len(whole[:left])} bytes\): not a readable safetensors"):
        sk.load(saved)


def test_foreign_or_missing_weights(saved: Path) -> None:
    (saved / WEIGHTS).write_bytes(b"PK\x03\x04 a zip file, as torch.save writes them" * 9)
    with pytest.raises(FormatError, match="not a readable safetensors file"):
        sk.load(saved)
    (saved / WEIGHTS).unlink()
    with pytest.raises(FormatError, match="no such file"):
        sk.load(saved)


def rewrite(path: Path, **change: torch.Tensor | None) -> None:
    tensors = load_file(path / WEIGHTS)
    tensors.update({name: tensor for name, tensor in change.items() if tensor is not None})
    save_file(
        {name: t for name, t in tensors.items() if name not in change or change[name] is not None}, path / WEIGHTS
    )


def test_tensors_that_do_not_fit_the_configuration(saved: Path) -> None:
    rewrite(saved, W_dec=torch.ones(19, 8))
    with pytest.raises(FormatError, match=re.escape("tensor 'W_dec' has shape (19, 8), expected (20, 8)")):
        sk.load(saved)
    rewrite(saved, W_dec=None)
    with pytest.raises(FormatError, match=re.escape("no tensor 'W_dec', expected shape (20, 8)")):
        sk.load(saved)
    rewrite(saved, W_dec=torch.ones(20, 8), W_extra=torch.ones(1))
    with pytest.raises(FormatError, match="tensor 'W_extra' is none of TopKCoder's: W_enc, b_enc, W_dec, b_dec"):
        sk.load(saved)


def test_tensors_of_a_dtype_no_coder_has(saved: Path) -> None:
    rewrite(saved, W_dec=torch.ones(20, 8, dtype=torch.int32))
    with pytest.raises(FormatError, match=r"tensor 'W_dec' is .*int32.*expected a floating dtype"):
        sk.load(saved)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("version", 2, "version 2, expected 1"),
        ("version", None, "version None, expected 1"),
        ("architecture", "topkk", "unknown architecture 'topkk': did you mean 'topk'"),
        ("architecture", 3, "'architecture' is 3, expected a str"),
        ("config", [], "'config' is [], expected a dict"),
        ("config", {"d_in": 8, "d_sae": 20}, "TopKConfig: missing k"),
        ("config", {"d_in": 8, "d_sae": 20, "k": 99}, "k = 99, expected at most d_sae = 20"),
        ("config", {"d_in": 8, "d_sae": 20, "k": 3, "kk": 1}, "unknown key of TopKConfig 'kk'"),
    ],
)
def test_a_damaged_configuration(saved: Path, key: str, value: object, words: str) -> None:
    config = json.loads((saved / CONFIG).read_text())
    (saved / CONFIG).write_text(json.dumps({**config, key: value}))
    with pytest.raises(FormatError, match=re.escape(words)):
        sk.load(saved)


def test_a_write_that_fails_leaves_the_old_one(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, at whatever moment."""
    old = sk.load(saved)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for module, name in ((files, "_sync_file"), (os, "fsync")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, full)
            with pytest.raises((FormatError, OSError), match="No space left"):
                sk.save(make("transcoder"), saved)
        assert torch.equal(sk.load(saved).W_enc, old.W_enc)
        assert [p.name for p in saved.parent.iterdir()] == ["sae"], "litter"


def test_an_unwritable_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises((FormatError, OSError), match="file"):
        sk.save(make(), tmp_path / "file" / "sae")
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_file_in_the_way_is_not_overwritten_by_a_folder(tmp_path: Path) -> None:
    target = tmp_path / "sae"
    target.write_text("precious")
    with pytest.raises((FormatError, OSError)):
        sk.save(make(), target)
    assert target.read_text() == "precious"


def test_a_coder_without_a_name_cannot_be_saved(tmp_path: Path) -> None:
    class Nameless(sk.SparseCoder):
        pass

    with pytest.raises(FormatError, match="Nameless has no `architecture` name"):
        sk.save(Nameless(sk.CoderConfig(2, 3)), tmp_path / "sae")
    assert not (tmp_path / "sae").exists()
