"""Sizes and checksums of the files of a folder, so that damage is found before anything is read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

NAME = "manifest.json"


def write(folder: Path) -> None:
    """Describe every other file in `folder`, in a file of its own."""
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / NAME
    }
    (folder / NAME).write_text(json.dumps({"files": files}, indent=2) + "\n", encoding="utf-8")


def damage(folder: Path) -> str | None:
    """What is wrong with `folder`; None where every file is as it was written."""
    try:
        files = json.loads((folder / NAME).read_text(encoding="utf-8"))["files"]
        for name, expected in files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if (size := path.stat().st_size) != expected["bytes"]:
                return f"{name} has {size} bytes, expected {expected['bytes']}"
            if _sha256(path) != expected["sha256"]:
                return f"{name} has another checksum than when it was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{NAME}: {error}"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
