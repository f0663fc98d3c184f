from __future__ import annotations

from pathlib import Path

import pytest

from sae_kernels.adapters import read_texts
from sae_kernels.adapters.texts import stdlib_texts
from sae_kernels.errors import AdapterError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "b.txt").write_text("plain ☃", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n{"text": "two", "id": 3}\n')
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.py").write_text("x = 1\n")
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    return tmp_path


def test_folder_in_a_fixed_order(folder: Path) -> None:
    found = [(Path(name).relative_to(folder).as_posix(), text) for name, text in read_texts(folder)]
    assert found == [
        ("a.jsonl:1", "one"),
        ("a.jsonl:3", "two"),
        ("b.txt", "plain ☃"),
        ("sub/c.py", "x = 1\n"),
    ]


def test_list_of_files(folder: Path) -> None:
    assert [text for _, text in read_texts([folder / "b.txt", str(folder / "sub")])] == ["plain ☃", "x = 1\n"]


def test_missing_and_empty(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"gone\.txt: no such file"):
        list(read_texts(tmp_path / "gone.txt"))
    with pytest.raises(AdapterError, match="no text files"):
        list(read_texts(tmp_path))


def test_not_text(folder: Path) -> None:
    with pytest.raises(AdapterError, match=r"image\.png: byte 0 is not UTF-8"):
        list(read_texts(folder / "image.png"))


@pytest.mark.parametrize("line", ["{", "[1]", '"text"', '{"txt": "a"}', '{"text": 3}', "3"])
def test_bad_json_line(tmp_path: Path, line: str) -> None:
    (path := tmp_path / "x.jsonl").write_text(f'{{"text": "good"}}\n{line}\n')
    with pytest.raises(AdapterError, match=r"x.jsonl, line 2: found .*, expected"):
        list(read_texts(path))


def test_standard_library() -> None:
    names = {split: next(stdlib_texts(split))[0] for split in ("train", "heldout", "all")}
    assert names["train"] == names["all"] != names["heldout"]
