"""A training configuration: TOML or a dictionary, checked before anything heavy is loaded."""

from __future__ import annotations

import dataclasses
import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .keys import keys
from .open_tables import FROM_SOURCE, ActivationsTable, CoderTable, check_layers
from .parsing import TABLES, check_together, parse
from .tables import OutputTable, TrainingTable
from .types import found


@dataclass(frozen=True)
class Config:
    """What to train, on what, how, and where to. Build it with `load_config` or `Config.from_dict`: they
    check."""

    activations: ActivationsTable
    coder: CoderTable
    training: TrainingTable
    output: OutputTable

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], source: str = "configuration") -> Config:
        """From tables as TOML has them: `{"activations": {"adapter": "tensors", …}, "coder": {…}, …}`.

        Raises:
            ConfigError: naming `source`, the table and the key; for an unknown name also the nearest known.
        """
        try:
            config = cls(*parse(data))
            check_together(config.coder, config.training)
            check_layers(config.activations, config.coder)
            return config
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """The tables, defaults filled in, as `from_dict` takes them and JSON can hold them."""
        return {
            "activations": {"adapter": self.activations.adapter, **self.activations.options},
            "coder": {"architecture": self.coder.architecture, "seed": self.coder.seed, **self.coder.fields},
            "training": dataclasses.asdict(self.training),
            "output": {"dir": str(self.output.dir)},
        }

    def differences(self, other: Config) -> list[str]:
        """Where `other` would not continue what this configuration began: `[training] lr: 0.001, now
        0.002`."""
        mine, theirs = self.resolved(), other.resolved()
        lines = []
        for table, cls in TABLES.items():
            fixed = keys(cls)
            for name in sorted(mine[table].keys() | theirs[table].keys()):
                before, now = mine[table].get(name), theirs[table].get(name)
                if before != now and not (name in fixed and fixed[name].may_change):
                    lines.append(f"[{table}] {name}: {before!r}, now {now!r}")
        return lines

    def resolved(self) -> dict[str, dict[str, Any]]:
        """As `to_dict`, with the adapter's and the architecture's defaults of today; lists and tuples alike."""
        tables = self.to_dict()
        tables["activations"] = {**self.activations.accepted()[1], **tables["activations"]}
        tables["coder"] = {**self.coder.accepted()[1], **tables["coder"]}
        for name in FROM_SOURCE:
            tables["coder"].pop(name, None)  # the source decides
        return {table: {name: _plain(value) for name, value in entries.items()} for table, entries in tables.items()}


def _plain(value: Any) -> Any:
    """A value as JSON gives it back."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def load_config(path: str | os.PathLike[str]) -> Config:
    """Read a TOML file, or a run's config.json. docs/training.md lists every key.

    Raises:
        ConfigError: no such file, no TOML, an unknown key (names the nearest), a value that cannot be meant.
    """
    return Config.from_dict(read_tables(path), os.fspath(path))


def read_tables(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The tables of a .toml or .json file.

    Raises:
        ConfigError: no such file, or not of that kind.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        data = json.loads(text) if Path(path).suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{os.fspath(path)}: {reason}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{os.fspath(path)}: {found(data)}, expected tables")
    return data
