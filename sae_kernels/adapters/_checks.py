"""Checks of plain arguments that the built-in adapters share, and their optional packages."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import AdapterError, ArgumentError, nearest


def positive(**values: int | None) -> None:
    """Raise ArgumentError unless every value is None or an integer of at least 1."""
    for name, value in values.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ArgumentError(f"{name} = {value!r}, expected an integer >= 1")


def one_of(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise ArgumentError unless `value` is one of `choices`; names the nearest."""
    if value not in choices:
        hint = f" (did you mean {close[0]!r}?)" if (close := nearest(str(value), choices, n=1)) else ""
        raise ArgumentError(f"{name} = {value!r}, expected one of {', '.join(map(repr, choices))}{hint}")


def fraction(**values: float) -> float:
    """The one value given. Raise ArgumentError unless it lies between 0 and 1."""
    ((name, value),) = values.items()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        raise ArgumentError(f"{name} = {value!r}, expected a fraction between 0 and 1")
    return value


def paths(name: str, value: object, or_else: str = "") -> None:
    """Raise ArgumentError unless `value` is a path or a list of paths."""
    ok = value if isinstance(value, (list, tuple)) else [value]
    if not ok or not all(isinstance(part, (str, Path)) and str(part) for part in ok):
        raise ArgumentError(f"{name} = {value!r}, expected a path or a list of paths{or_else}")


def need(package: str, extra: str = "train") -> Any:
    """Import an optional package, of the extra that brings it, on first need.

    Raises:
        AdapterError: it is not installed; says what to install.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package.partition(".")[0]:  # installed, but broken: its own message says more
            raise
        raise AdapterError(f"the package {error.name!r} is not installed: pip install 'sae-kernels[{extra}]'") from None
