"""Texts for a language model to read: (name, text) pairs from files, folders or Python's own library."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import AdapterError
from ..specs import resolve
from ._order import Split

STDLIB = "python-stdlib"
_PLAIN = (".txt", ".md", ".rst", ".py")

# By name, because the demo stands floors above the adapters: only who asks for its corpus loads it.
_STDLIB_TEXTS = "sae_kernels.demo.corpus:texts"


def read_texts(source: str | Path | Iterable[str | Path], piece: int | None = None) -> Iterator[tuple[str, str]]:
    """Texts of a file, a folder, or several of them, in a fixed order.

    `piece`: a plain text file is read and given in pieces of about so many characters, cut at line ends, so that one of
    any size fits into memory.

    `.jsonl`: one text a line, `{"text": "…"}`. Any other file is one UTF-8 text. A folder: its .jsonl, .txt,
    .md, .rst and .py files, searched recursively, by sorted path.

    Raises:
        AdapterError: a path does not exist, is not text, or a folder has no such file; names file and line.
    """
    for path in [source] if isinstance(source, (str, Path)) else source:
        yield from _read_path(Path(path), piece)


def stdlib_texts(split: Split) -> Iterator[tuple[str, str]]:
    """The sources of Python's standard library, as installed; the split is by file, the demo corpus' own."""
    texts = resolve(_STDLIB_TEXTS)
    for part in ("train", "heldout") if split == "all" else (split,):
        yield from texts(part)


def _read_path(path: Path, piece: int | None) -> Iterator[tuple[str, str]]:
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix in (".jsonl", *_PLAIN))
        if not files:
            raise AdapterError(f"{path}: no text files, expected {', '.join(('.jsonl', *_PLAIN))}")
        for file in files:
            yield from _read_path(file, piece)
    elif not path.exists():
        raise AdapterError(f"{path}: no such file or folder, expected texts or {STDLIB!r}")
    elif path.suffix == ".jsonl":
        yield from _read_jsonl(path)
    else:
        yield from _read_plain(path, piece)


def _read_plain(path: Path, piece: int | None) -> Iterator[tuple[str, str]]:
    try:
        if piece is None:
            yield str(path), path.read_text(encoding="utf-8")
            return
        with path.open(encoding="utf-8") as file:
            number = 0
            while text := file.read(piece) + file.readline(piece):
                yield f"{path}@{number}", text
                number += 1
    except UnicodeDecodeError as error:
        raise AdapterError(f"{path}: byte {error.start} is not UTF-8, expected a text file") from None


def _read_jsonl(path: Path) -> Iterator[tuple[str, str]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                text = json.loads(line)["text"]
            except (json.JSONDecodeError, TypeError, KeyError):
                text = None
            if not isinstance(text, str):
                raise AdapterError(f'{path}, line {number}: found {line.strip()[:60]!r}, expected {{"text": "…"}}')
            yield f"{path}:{number}", text
