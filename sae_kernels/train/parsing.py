"""Tables of TOML to the tables of a configuration, with an error for whatever cannot be meant."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..architectures import coder_class
from ..errors import ConfigError, SaeKernelsError, nearest
from .keys import keys
from .open_tables import FROM_SOURCE, ActivationsTable, CoderTable
from .tables import OutputTable, TrainingTable
from .types import expected, fits, found, type_hints

TABLES = {
    "activations": ActivationsTable,
    "coder": CoderTable,
    "training": TrainingTable,
    "output": OutputTable,
}


def parse(data: Mapping[str, Any]) -> tuple[ActivationsTable, CoderTable, TrainingTable, OutputTable]:
    """The four tables.

    Raises:
        ConfigError: naming table and key, and the nearest known for an unknown one.
    """
    for name, value in data.items():
        if name == "sweep":
            raise ConfigError("[sweep] makes several runs of this, expected one: train.load_sweep reads them")
        if name not in TABLES:
            kind = "table" if isinstance(value, Mapping) else "key"
            home = next((table for table, cls in TABLES.items() if name in keys(cls)), None)
            hint = f"it belongs into [{home}]" if home and kind == "key" else _hint(name, TABLES)
            raise ConfigError(f"unknown {kind} {name!r}, {hint}")
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name} is {found(value)}, expected a table")
    tables = {name: dict(data.get(name, {})) for name in TABLES}
    return (
        _activations(tables["activations"]),
        _coder(tables["coder"]),
        _training(tables["training"]),
        _output(tables["output"]),
    )


def check_together(coder: CoderTable, training: TrainingTable) -> None:
    """Raise ConfigError for what the architecture cannot do."""
    cls = coder_class(coder.architecture)
    if training.normalize != "none" and not cls.can_fold():
        raise ConfigError(
            f"[training] normalize = {training.normalize!r}: architecture {coder.architecture!r} cannot fold a "
            "normalisation into its weights, expected 'none'"
        )
    if training.resample_every is not None and not cls.can_resample():
        raise ConfigError(
            f"[training] resample_every = {training.resample_every}: architecture {coder.architecture!r} "
            "does not resample latents"
        )


def _activations(values: dict[str, Any]) -> ActivationsTable:
    own = _take_own("activations", values)
    table = ActivationsTable(options=values, **own)
    with _about("activations"):
        taken, defaults, open_ended = table.accepted()
    if not open_ended:
        _refuse_unknown("activations", values, [*keys(ActivationsTable), *taken])
    _check_types("activations", values, taken)
    _check_present("activations", values, [name for name in taken if name not in defaults])
    return table


def _coder(values: dict[str, Any]) -> CoderTable:
    own = _take_own("coder", values)
    table = CoderTable(fields=values, **own)
    with _about("coder"):
        taken, defaults = table.accepted()
    _refuse_unknown("coder", values, [*keys(CoderTable), *taken])
    _check_types("coder", values, taken)
    _check_present("coder", values, [name for name in taken if name not in {*defaults, *FROM_SOURCE}])
    with _about("coder"):
        table.check()
    return table


def _training(values: dict[str, Any]) -> TrainingTable:
    own = _take_own("training", values)
    if "betas" in own:
        own["betas"] = tuple(own["betas"])
    return TrainingTable(**own)


def _output(values: dict[str, Any]) -> OutputTable:
    own = _take_own("output", values)
    if not str(own["dir"]):
        raise ConfigError("[output] dir is empty, expected a folder")
    return OutputTable(Path(own["dir"]))


def _take_own(table: str, values: dict[str, Any]) -> dict[str, Any]:
    """Take the table's fixed keys out of `values`, checked; a table without other keys refuses the rest."""
    fixed = keys(TABLES[table])
    own = {name: values.pop(name) for name in fixed if name in values}
    if table in ("training", "output"):
        _refuse_unknown(table, values, fixed)
    _check_types(table, own, type_hints(TABLES[table]))
    _check_present(table, own, [name for name, each in fixed.items() if each.required])
    return own


def _refuse_unknown(table: str, values: Iterable[str], choices: Iterable[str]) -> None:
    for name in values:
        if name not in choices:
            raise ConfigError(f"[{table}] {name}: unknown key, {_hint(name, choices)}")


def _check_types(table: str, values: Mapping[str, Any], taken: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if name in taken and not fits(value, taken[name]):
            raise ConfigError(f"[{table}] {name} is {found(value)}, expected {expected(taken[name])}")


def _check_present(table: str, values: Iterable[str], required: Iterable[str]) -> None:
    if missing := [name for name in required if name not in values]:
        raise ConfigError(f"[{table}] {', '.join(missing)}: missing")


@contextlib.contextmanager
def _about(table: str) -> Iterator[None]:
    """Errors of registries and architectures, with the table named."""
    try:
        yield
    except SaeKernelsError as error:
        raise ConfigError(f"[{table}] {error}") from error


def _hint(name: str, choices: Iterable[str]) -> str:
    choices = list(choices)
    close = nearest(name, choices)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else f"known: {', '.join(choices)}"


def parse_activations(data: Mapping[str, Any]) -> ActivationsTable:
    """The `[activations]` table alone, from tables of which others may be missing.

    Raises:
        ConfigError: as `parse`.
    """
    values = data.get("activations")
    if not isinstance(values, Mapping):
        raise ConfigError("no table [activations], expected one: it says what to read")
    return _activations(dict(values))
