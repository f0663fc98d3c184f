"""A configuration file's keys, taken with the type they must have."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ..errors import FormatError

_MISSING: Any = object()
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.float64, torch.float16)}
DTYPES["bfloat16"] = torch.bfloat16


class Keys:
    """A JSON object, whose errors name the file, the key, what was found and what was expected."""

    def __init__(self, file: Path, values: dict[str, Any]) -> None:
        self.file = file
        self.values = values

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def refuse(self, name: str, why: str) -> FormatError:
        """The error for a value that cannot be honoured."""
        return FormatError(f"{self.file}: {name} = {self.values.get(name)!r}: {why}")

    def integer(self, name: str, default: int = _MISSING) -> int:
        """A positive integer; a float that is whole counts."""
        value = self._get(name, default)
        if isinstance(value, float) and value == int(value):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.refuse(name, "expected a positive integer")
        return value

    def boolean(self, name: str, default: bool = _MISSING) -> bool:
        """True or False."""
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self.refuse(name, "expected true or false")
        return value

    def choice(self, name: str, choices: Iterable[str], default: str = _MISSING) -> str:
        """One of these; null is as if the key were missing."""
        value = self._get(name, default)
        if value not in tuple(choices):
            raise self.refuse(name, f"expected one of {', '.join(choices)}")
        return value

    def mapping(self, name: str) -> dict[str, Any]:
        """An object; empty where it is missing."""
        value = self._get(name, {})
        if not isinstance(value, dict):
            raise self.refuse(name, "expected an object")
        return value

    def dtype(self, name: str = "dtype") -> torch.dtype | None:
        """A dtype by name, with or without "torch."; None where it is missing."""
        if name not in self:
            return None
        found = DTYPES.get(str(self.values[name]).removeprefix("torch."))
        if found is None:
            raise self.refuse(name, f"expected one of {', '.join(DTYPES)}")
        return found

    def _get(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        if value is None:
            if default is _MISSING:
                raise FormatError(f"{self.file}: no key {name!r}")
            return default
        return value


def read_json(path: Path) -> Keys:
    """A JSON object from disk; FormatError where there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{path}: {error}") from error
    if not isinstance(values, dict):
        raise FormatError(f"{path}: holds a {type(values).__name__}, expected a JSON object")
    return Keys(path, values)


def peek_json(path: Path) -> dict[str, Any]:
    """The object, or {} where there is none to read: for `matches`."""
    try:
        return read_json(path).values
    except FormatError:
        return {}


def write_json(values: dict[str, Any], path: Path) -> None:
    """Write an object, indented."""
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
