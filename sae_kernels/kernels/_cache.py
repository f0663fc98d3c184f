"""Measurements of this machine on disk: JSON files in `settings.cache_dir()`, written whole or not at all.

They only ever make things faster: one that cannot be read, or is not what it should be, is named in a warning, once,
and ignored.
"""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

from .. import settings
from ..files import atomic_file


def path_of(kind: str, *parts: str) -> Path:
    """`<cache>/<kind>-<parts>.json`, the parts as a file name can hold them."""
    words = [re.sub(r"[^a-z0-9.]+", "-", part.lower()).strip("-.") for part in parts]
    return settings.cache_dir() / f"{'-'.join([kind, *words])}.json"


def load(path: Path, expected: dict[str, Any]) -> dict[str, Any] | None:
    """What a file holds; None without one, or, with a warning, where it is damaged or lacks what is `expected`."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        ignore(path, f"cannot be read ({error})")
        return None
    if not isinstance(data, dict):
        ignore(path, "is no JSON object")
        return None
    for key, value in expected.items():
        if data.get(key) != value:
            ignore(path, f"has {key} {data.get(key)!r}, expected {value!r}")
            return None
    return data


def ignore(path: Path, why: str) -> None:
    """Say that a file is not used."""
    warnings.warn(f"sae_kernels: {path} {why}; ignored", RuntimeWarning, stacklevel=3)


def store(path: Path, data: dict[str, Any]) -> None:
    """Write it in one step, making the folder where there is none."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")
