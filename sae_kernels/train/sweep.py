"""Several runs from one configuration: a `[sweep]` table of lists, and the sources they share."""

from __future__ import annotations

import itertools
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..adapters import ActivationSource
from ..adapters.shared import SharedBlocks, SharedPoints, union
from ..errors import ConfigError, nearest
from .config import Config, read_tables
from .keys import keys
from .open_tables import ActivationsTable, CoderTable
from .parsing import TABLES
from .types import fits, found

POINTS = ("hook_in", "hook_out")
TRAINING = ("lr",)


def load_sweep(path: str | os.PathLike[str]) -> list[Config]:
    """Read a TOML file, or a run's config.json: the configuration of each run, one without a `[sweep]` table.

    Raises:
        ConfigError: as `load_config`, and for a sweep that cannot be meant.
    """
    data = read_tables(path)
    return expand(data, os.fspath(path)) if "sweep" in data else [Config.from_dict(data, os.fspath(path))]


def expand(data: Mapping[str, Any], source: str = "configuration") -> list[Config]:
    """One configuration for each combination of the values in `[sweep]`, in `<dir>/<key>=<value>,…`.

    Keys: those of `[coder]`, `hook_in`, `hook_out`, `lr`. The lists are multiplied with one another; `hook_in` and
    `hook_out` go together, pair by pair.

    Raises:
        ConfigError: an unknown key, no list, a key that stands in its own table too, two runs of one name, or a
            configuration that `Config.from_dict` refuses; named by its combination.
    """
    tables = {name: value for name, value in data.items() if name != "sweep"}
    try:
        axes = _axes(tables, data["sweep"])
    except ConfigError as error:
        raise ConfigError(f"{source}: [sweep] {error}") from error
    members: dict[str, Config] = {}
    for combination in itertools.product(*axes):
        values = {name: value for part in combination for name, value in part.items()}
        name = ",".join(
            f"{key}={_slug(value)}" for key, value in values.items() if not (key == "hook_out" and "hook_in" in values)
        )
        if name in members:
            raise ConfigError(f"{source}: [sweep] two runs are named {name}, expected different values")
        members[name] = Config.from_dict(_member(tables, values, name), f"{source}: {name}")
    return list(members.values())


def open_sources(configs: Sequence[Config]) -> list[ActivationSource]:
    """The source of each, a view of what they share: the language model runs once a block for all hook points.

    An adapter that takes no list of hook points is opened once for each pair, with a warning.

    Raises:
        ConfigError: their `[activations]` differ in more than hook points.
    """
    if len(configs) == 1:
        return [configs[0].activations.open()]
    pairs: list[tuple[Any, Any]] = [
        (config.activations.options.get("hook_in"), config.activations.options.get("hook_out")) for config in configs
    ]
    rests = [_without_points(config.activations) for config in configs]
    for rest in rests[1:]:
        if rest != rests[0]:
            raise ConfigError(
                "runs that are trained together differ in [activations] by more than hook_in and hook_out"
            )
    table = configs[0].activations
    if all(_hashable(pair) == _hashable(pairs[0]) for pair in pairs):
        one = SharedBlocks(table.open())
        return [one] * len(configs)
    points = union(pairs)
    if fits(points, table.accepted()[0].get("hook_in", str)):
        source = table.open(hook_in=points, hook_out=None)
        if hasattr(source, "widths"):
            shared = SharedPoints(source, points)
            return list[ActivationSource](shared.view(*pair) for pair in pairs)
    warnings.warn(
        f"adapter {table.adapter!r} does not read several hook points at once: it is opened, and its model runs, once "
        "for each",
        RuntimeWarning,
        stacklevel=2,
    )
    opened = {_hashable(pair): config for pair, config in zip(pairs, configs, strict=True)}
    sources = {pair: SharedBlocks(config.activations.open()) for pair, config in opened.items()}
    return [sources[_hashable(pair)] for pair in pairs]


def _axes(tables: Mapping[str, Any], sweep: Any) -> list[list[dict[str, Any]]]:
    """For each axis its points, each the values of some keys."""
    if not isinstance(sweep, Mapping) or not sweep:
        raise ConfigError(f"is {found(sweep)}, expected a table of lists")
    for name, values in sweep.items():
        home = _home(tables, sweep, name)
        if not isinstance(values, (list, tuple)) or not values:
            raise ConfigError(f"{name} is {found(values)}, expected a list of values")
        if name in _table(tables, home):
            raise ConfigError(f"{name} stands in [{home}] too, expected it in one of them")
    axes = [[{name: value} for value in values] for name, values in sweep.items() if name not in POINTS]
    points = {name: sweep[name] for name in POINTS if name in sweep}
    if not points:
        return axes
    lengths = {name: len(values) for name, values in points.items()}
    if len(set(lengths.values())) > 1:
        raise ConfigError(f"{lengths['hook_in']} of hook_in and {lengths['hook_out']} of hook_out: they go in pairs")
    return [[dict(zip(points, pair, strict=True)) for pair in zip(*points.values(), strict=True)], *axes]


def _home(tables: Mapping[str, Any], sweep: Mapping[str, Any], name: str) -> str:
    """The table that a key of `[sweep]` belongs to."""
    if name in POINTS:
        adapter = _table(tables, "activations").get("adapter")
        if isinstance(adapter, str):
            taken, _, open_ended = ActivationsTable(adapter).accepted()
            if not open_ended and name not in taken:
                raise ConfigError(f"{name}: adapter {adapter!r} has no such key")
        return "activations"
    if name in TRAINING:
        return "training"
    given = sweep.get("architecture", _table(tables, "coder").get("architecture"))
    architectures = given if isinstance(given, (list, tuple)) else [given]
    known = {*keys(CoderTable)}
    for architecture in architectures:
        if isinstance(architecture, str):
            known |= set(CoderTable(architecture).accepted()[0])
    if name not in known:
        choices = sorted({*known, *POINTS, *TRAINING})
        close = nearest(name, choices)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"known: {', '.join(choices)}"
        raise ConfigError(f"{name}: unknown key, {hint}")
    return "coder"


def _table(tables: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    table = tables.get(name, {})
    return table if isinstance(table, Mapping) else {}


def _member(tables: Mapping[str, Any], values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The tables of one run."""
    new = {table: dict(entries) if isinstance(entries, Mapping) else entries for table, entries in tables.items()}
    for table in TABLES:
        new.setdefault(table, {})
    for key, value in values.items():
        home = "activations" if key in POINTS else "training" if key in TRAINING else "coder"
        if isinstance(new[home], dict):
            new[home][key] = value
    if isinstance(new["output"], dict) and isinstance(new["output"].get("dir"), str) and new["output"]["dir"]:
        new["output"]["dir"] = str(Path(new["output"]["dir"]) / name)
    return new


def _slug(value: Any) -> str:
    """A value as part of a folder's name."""
    text = "+".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return re.sub(r"[^A-Za-z0-9._+-]", "_", text)


def _without_points(table: ActivationsTable) -> dict[str, Any]:
    return {"adapter": table.adapter, **{name: value for name, value in table.options.items() if name not in POINTS}}


def _hashable(pair: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(tuple(each) if isinstance(each, (list, tuple)) else each for each in pair)
