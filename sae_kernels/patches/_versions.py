"""Which class a module is of, and of which version of its library, without importing anything."""

from __future__ import annotations

import importlib.metadata
from functools import cache
from typing import Any

from ._swap import host


def class_name(module: Any) -> str:
    """ "package.module:Class" of what a module is (of what it was, where it is patched)."""
    cls = host(module)
    return f"{cls.__module__}:{cls.__qualname__}"


@cache
def version_of(distribution: str) -> tuple[int, ...]:
    """Its version's leading numbers; () where it is not installed."""
    try:
        text = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ()
    numbers = []
    for part in text.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def outside(distribution: str, first: tuple[int, ...], end: tuple[int, ...]) -> str | None:
    """None for a version from `first` to before `end`; else the reason."""
    version = version_of(distribution)
    if first <= version < end:
        return None
    shown = ".".join(map(str, version)) or "unknown"
    return (
        f"{distribution} is version {shown}, known are {'.'.join(map(str, first))} to before {'.'.join(map(str, end))}"
    )
