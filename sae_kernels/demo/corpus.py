"""The text of the demo: Python's standard library, read from the installation that runs it.

The split is a property of a file's name alone, so that it is the same on every machine and for every Python
version: a file that was held out when the embedded model was trained is held out for the reader too.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from ..errors import AdapterError, ArgumentError

Split = Literal["train", "heldout"]

LICENCE = (
    "The text is Python's standard library, (c) Python Software Foundation and contributors, under the PSF "
    "License Version 2 (SPDX: PSF-2.0). It is read from your own Python installation and is not passed on "
    "here; the embedded language model was trained on it."
)

HELD_OUT_PERCENT = 5

# Third-party or compiled code, tests (distributions leave them out), and tables that a program wrote.
_SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "lib-dynload"}
    | {"test", "tests", "idle_test", "encodings", "pydoc_data"}
)
_SKIPPED_PREFIXES = ("config-", "_sysconfigdata", "sitecustomize", "usercustomize")
_LARGEST_BYTES = 256 * 1024  # the longest module written by hand, _pydecimal.py, has 230 kB


def split_of(name: str) -> Split:
    """Split of a file by its path relative to the standard library, with forward slashes.

    `sha256(name) mod 100 < HELD_OUT_PERCENT` is held out, the rest is for training.
    """
    return "heldout" if _hash(name) % 100 < HELD_OUT_PERCENT else "train"


def root() -> Path:
    """Folder of the standard library. AdapterError where it isn't a folder with sources."""
    folder = Path(sysconfig.get_path("stdlib"))
    if not (folder / "argparse.py").is_file():
        raise AdapterError(
            f"no Python sources in {folder}\n"
            "  found: a Python without a readable standard library (zipped, embedded or frozen)\n"
            "  expected: a folder with argparse.py and its like; use a full installation, or your own texts"
        )
    return folder


def files(split: Split) -> list[Path]:
    """Source files of one split, and the licence text where it lies beside them.

    The order looks shuffled (by hash of the relative path), so that a budget of characters takes a fair
    sample; it is the same on every machine.
    """
    folder = root()
    return [folder / name for name in _names(folder) if split_of(name) == split]


def texts(split: Split, limit_chars: int | None = None) -> Iterator[tuple[str, str]]:
    """Yield `(relative name, text)` in the order of `files`, at most `limit_chars` characters in all.

    Newlines come as "\\n". Files that aren't UTF-8 are passed over.
    """
    if limit_chars is not None and limit_chars < 0:
        raise ArgumentError(f"limit_chars: found {limit_chars}, expected None or a number >= 0")
    folder = root()
    left = limit_chars
    for path in files(split):
        if left == 0:
            return
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        if left is not None:
            text = text[:left]
            left -= len(text)
        if text:
            yield path.relative_to(folder).as_posix(), text


@functools.cache
def _names(folder: Path) -> tuple[str, ...]:
    found: list[str] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if f not in _SKIPPED_FOLDERS and not f.startswith(_SKIPPED_PREFIXES)]
        for name in names:
            path = Path(parent, name)
            relative = path.relative_to(folder).as_posix()
            if _wanted(relative) and path.is_file() and path.stat().st_size <= _LARGEST_BYTES:
                found.append(relative)
    return tuple(sorted(found, key=_hash))


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def _wanted(relative: str) -> bool:
    name = relative.rpartition("/")[2]
    return relative == "LICENSE.txt" or (name.endswith(".py") and not name.startswith(_SKIPPED_PREFIXES))
