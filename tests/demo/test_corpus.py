"""The demo's corpus: the same order and the same split everywhere, and only text that people wrote."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from sae_kernels.demo import corpus
from sae_kernels.errors import AdapterError, ArgumentError


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty standard library to put files into."""
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    (tmp_path / "argparse.py").write_text("pass\n")
    return tmp_path


def names() -> set[str]:
    root = corpus.root()
    return {path.relative_to(root).as_posix() for split in ("train", "heldout") for path in corpus.files(split)}


def test_splits_are_disjoint_and_held_out_is_small() -> None:
    train, held_out = set(corpus.files("train")), set(corpus.files("heldout"))
    assert not train & held_out
    assert 0.02 < len(held_out) / len(train | held_out) < 0.10


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("argparse.py", "train"),
        ("json/decoder.py", "train"),
        ("pprint.py", "heldout"),
        ("warnings.py", "heldout"),
    ],
)
def test_the_split_is_the_one_the_model_was_trained_with(name: str, split: str) -> None:
    assert corpus.split_of(name) == split
    assert corpus.root() / name in corpus.files(split)  # pyright: ignore[reportArgumentType]


def test_order_does_not_depend_on_the_process() -> None:
    code = "from sae_kernels.demo import corpus; print([n for n, _ in corpus.texts('heldout')])"
    listed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert listed == {f"{[name for name, _ in corpus.texts('heldout')]}\n"}


def test_there_is_enough_text_and_it_is_text() -> None:
    sizes = {name: len(text) for name, text in corpus.texts("train")}
    assert sum(sizes.values()) > 3_000_000
    assert max(sizes.values()) <= 256 * 1024
    assert all(sizes.values())


@pytest.mark.parametrize("limit", [0, 1, 50_000])
def test_budget_is_met_exactly_by_a_prefix(limit: int) -> None:
    cut = list(corpus.texts("train", limit_chars=limit))
    assert sum(len(text) for _, text in cut) == limit
    for (name, text), (full_name, full_text) in zip(cut, corpus.texts("train"), strict=False):
        assert name == full_name
        assert full_text.startswith(text)


def test_negative_budget_is_an_error() -> None:
    with pytest.raises(ArgumentError, match="found -1, expected None or a number >= 0"):
        list(corpus.texts("train", limit_chars=-1))


def test_only_sources_that_people_wrote(library: Path) -> None:
    for skipped in (
        "site-packages/numpy.py",
        "dist-packages/six.py",
        "pkg/__pycache__/a.py",
        "test/test_ast.py",
        "pkg/tests/a.py",
        "encodings/cp437.py",
        "pydoc_data/topics.py",
        "config-3.11-x86_64-linux-gnu/python-config.py",
        "_sysconfigdata__linux.py",
        "sitecustomize.py",
        "module.so",
        "pkg/LICENSE.txt",
    ):
        (library / skipped).parent.mkdir(parents=True, exist_ok=True)
        (library / skipped).write_text("pass\n")
    (library / "generated.py").write_text("x = 1\n" * 100_000)
    (library / "pkg" / "wanted.py").write_text("pass\n")
    (library / "LICENSE.txt").write_text("PSF LICENSE AGREEMENT\n")
    assert names() == {"argparse.py", "pkg/wanted.py", "LICENSE.txt"}


def test_files_that_are_not_utf8_or_empty_are_passed_over(library: Path) -> None:
    (library / "latin.py").write_bytes(b"# caf\xe9\n")
    (library / "empty.py").write_bytes(b"")
    (library / "windows.py").write_bytes(b"a = 1\r\nb = 2\r\n")
    found = {name: text for split in ("train", "heldout") for name, text in corpus.texts(split)}
    assert found == {"argparse.py": "pass\n", "windows.py": "a = 1\nb = 2\n"}


def test_a_zipped_library_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zipped = tmp_path / "python311.zip"
    zipped.write_bytes(b"PK")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(zipped))
    with pytest.raises(AdapterError, match=r"no Python sources in .*python311\.zip\n +found: .*zipped") as caught:
        next(corpus.texts("train"))
    assert "expected: a folder with argparse.py" in str(caught.value)


def test_the_licence_is_stated() -> None:
    assert "PSF License Version 2" in corpus.LICENCE.replace("\n", " ")
