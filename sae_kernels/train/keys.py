"""Keys of a configuration table: declared once, as dataclass fields, for parsing, resuming and the docs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from .types import expected, type_hints


@dataclass(frozen=True)
class Key:
    """One key, as docs/training.md shows it."""

    name: str
    type: str
    default: str
    meaning: str
    may_change: bool
    required: bool

    def row(self) -> str:
        """Its row in the docs' table."""
        return f"| `{self.name}` | {self.type} | {self.default} | {self.meaning} |"


def key(meaning: str, default: Any = dataclasses.MISSING, *, unset: str = "", may_change: bool = False) -> Any:
    """A dataclass field that is a configuration key.

    `unset` says what a default of None stands for; a run may be resumed with another value where
    `may_change`.
    """
    metadata = {"meaning": meaning, "unset": unset, "may_change": may_change}
    return dataclasses.field(default=default, metadata=metadata)


def keys(table: type) -> dict[str, Key]:
    """The keys of a table, by name."""
    hints = type_hints(table)
    return {
        field.name: Key(
            field.name,
            expected(hints[field.name]),
            _shown_default(field),
            field.metadata["meaning"],
            field.metadata["may_change"],
            field.default is dataclasses.MISSING,
        )
        for field in dataclasses.fields(table)
        if "meaning" in field.metadata
    }


def _shown_default(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING:
        return "(required)"
    if field.default is None:
        return field.metadata["unset"] or "none"
    if isinstance(field.default, bool):
        return f"`{str(field.default).lower()}`"
    if isinstance(field.default, str):
        return f'`"{field.default}"`'
    if isinstance(field.default, tuple):
        return f"`{list(field.default)}`"
    return f"`{field.default:_}`" if isinstance(field.default, int) else f"`{field.default}`"
