"""Activations written to disk once, to train on many times: shards that the adapter `tensors` reads.

<dir>/
    cache.json              what was read, the shards that are complete, and the place in the data behind them
    shard_00000.safetensors `input` (rows, d_in) and, where it differs, `target` (rows, d_out)

A shard appears under its name when it is complete, and cache.json counts it afterwards: a kill at any moment loses at
most the shard that was being written, and the same command goes on.
"""

from __future__ import annotations

import json
import os
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm

from ..adapters import ActivationSource, write_shard
from ..errors import AdapterError, CheckpointError, ConfigError
from ..files import atomic_file
from .batches import Position
from .lock import locked
from .open_tables import ActivationsTable
from .parsing import parse_activations

VERSION = 1
MANIFEST = "cache.json"
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass
class Manifest:
    """cache.json."""

    activations: dict[str, Any]
    d_in: int
    d_out: int | None  # None: there is no target, it is the input
    dtype: str
    shard_rows: int
    shards: list[int]  # rows of each
    position: tuple[int, int]  # block and row that come next
    complete: bool = False  # the source had no more
    version: int = VERSION

    @property
    def rows(self) -> int:
        """Rows in complete shards."""
        return sum(self.shards)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row on disk."""
        return DTYPES[self.dtype].itemsize * (self.d_in + (self.d_out or 0))

    def differences(self, other: Manifest) -> list[str]:
        """Where `other` asks for something else than what is there."""
        names = ("activations", "d_in", "d_out", "dtype", "shard_rows")
        pairs = ((name, getattr(self, name), getattr(other, name)) for name in names)
        return [f"{name}: {before!r}, now {now!r}" for name, before, now in pairs if before != now]


@dataclass(frozen=True)
class Plan:
    """What is about to be written."""

    directory: Path
    manifest: Manifest
    tokens: int

    @property
    def missing_bytes(self) -> int:
        """Bytes that are still to be written."""
        return max(0, self.tokens - self.manifest.rows) * self.manifest.row_bytes

    def __str__(self) -> str:
        made = self.manifest
        widths = f"{made.d_in}" if made.d_out is None else f"({made.d_in} + {made.d_out})"
        there = f", {made.rows:,} of them there already" if made.rows else ""
        free = shutil.disk_usage(self.directory).free
        return (
            f"{self.tokens:,} tokens{there} × {widths} × {made.dtype}: {size(self.missing_bytes)} to write "
            f"in shards of {size(made.shard_rows * made.row_bytes)} into {self.directory} ({size(free)} free)"
        )


def load_activations(path: str | os.PathLike[str]) -> ActivationsTable:
    """The `[activations]` table of a TOML file; other tables may stand beside it.

    Raises:
        ConfigError: no such file, no TOML, no such table, or one that cannot be meant.
    """
    try:
        return parse_activations(tomllib.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{os.fspath(path)}: {reason}") from error


def plan(
    table: ActivationsTable,
    source: ActivationSource,
    directory: Path,
    tokens: int,
    *,
    dtype: str = "bfloat16",
    shard_bytes: int = 1 << 29,
) -> Plan:
    """What `write` would do. An earlier cache in the directory is gone on with; it may be asked for more tokens.

    Raises:
        ConfigError: the cache there holds something else, or the disk has too little room.
        CheckpointError: its cache.json is damaged, or the directory can't be made.
    """
    same = _same_tensor(source)
    row = DTYPES[dtype].itemsize * (source.d_in + (0 if same else source.d_out))
    shard_rows = max(1, shard_bytes // row)
    options = {**table.accepted()[1], **table.options}
    given = {"adapter": table.adapter, **json.loads(json.dumps(options, default=str))}
    fresh = Manifest(given, source.d_in, None if same else source.d_out, dtype, shard_rows, [], (0, 0))
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{directory} can't be made: {error.strerror}") from error
    found = read_manifest(directory)
    if found is None:
        if foreign := sorted(path.name for path in directory.glob("*.safetensors")):
            raise ConfigError(f"{directory} holds {foreign[0]} and no {MANIFEST}; take an empty folder")
        found = fresh
    elif differences := found.differences(fresh):
        lines = "\n".join(f"  {line}" for line in differences)
        raise ConfigError(f"{directory} holds a cache of something else; take another folder, or:\n{lines}")
    made = Plan(directory, found, tokens)
    free = shutil.disk_usage(directory).free
    if made.missing_bytes > free:
        raise ConfigError(f"{directory}: {size(made.missing_bytes)} are to be written, {size(free)} are free")
    return made


def write(plan: Plan, source: ActivationSource, *, progress: bool = False) -> Manifest:
    """Write the shards that are missing, all but the last of full size; → what is there afterwards, fewer tokens than
    planned where the source ends before. A cache that grows later keeps the short shard it ended with.

    Raises:
        CheckpointError: a full disk or a folder that can't be written; says how much is complete.
        AdapterError: the source can't be read, or gives values that the dtype does not hold.
        TrainingError: another process writes there.
    """
    made, directory = plan.manifest, plan.directory
    with (
        locked(directory),
        tqdm(
            total=plan.tokens, initial=made.rows, unit="tok", unit_scale=True, disable=not progress, desc="cache"
        ) as bar,
    ):
        for path in directory.glob(".shard_*"):
            path.unlink()
        made = read_manifest(directory) or made
        for parts in _shards(made, source, plan.tokens, bar):
            rows = len(parts[0])
            path = shard_path(directory, len(made.shards))
            try:
                write_shard(path, *parts)
                made.shards.append(rows)
                _save(made, directory)
            except (OSError, SafetensorError) as error:
                cause = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                raise CheckpointError(
                    f"{path} could not be written: {cause}; {read_rows(directory):,} tokens are complete, and the "
                    "same command goes on once there is room"
                ) from error
        _save(made, directory)
    return made


def read_manifest(directory: Path) -> Manifest | None:
    """cache.json; None where there is none.

    Raises:
        CheckpointError: it is damaged, of another version, or a shard it counts is gone.
    """
    path = directory / MANIFEST
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        made = Manifest(**{**data, "position": tuple(data["position"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: not a cache's description: {error}") from error
    if made.version != VERSION:
        raise CheckpointError(f"{path}: version {made.version!r}, expected {VERSION}")
    for number in range(len(made.shards)):
        if not shard_path(directory, number).is_file():
            raise CheckpointError(f"{shard_path(directory, number)} is gone, {path} counts it")
    return made


def read_rows(directory: Path) -> int:
    """Rows that cache.json counts."""
    made = read_manifest(directory)
    return made.rows if made else 0


def shard_path(directory: Path, number: int) -> Path:
    """Where a shard lies."""
    return directory / f"shard_{number:05d}.safetensors"


def size(n: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} B" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


def _save(made: Manifest, directory: Path) -> None:
    with atomic_file(directory / MANIFEST) as path:
        path.write_text(json.dumps(asdict(made), indent=2) + "\n", encoding="utf-8")


def _shards(made: Manifest, source: ActivationSource, tokens: int, bar: Any) -> Iterator[tuple[Tensor, ...]]:
    """The tensors of each missing shard; `made.position` is behind them when they are handed out."""
    parts: list[tuple[Tensor, ...]] = []
    rows, left = 0, tokens - made.rows
    position = Position(*made.position)
    while left > 0 and not made.complete:
        if source.n_blocks is not None and position.block >= source.n_blocks:
            made.complete = True
            break
        block = source.block(position.block)
        take = min(len(block) - position.row, made.shard_rows - rows, left)
        chosen = slice(position.row, position.row + take)
        tensors = (block.input,) if made.d_out is None else (block.input, block.target)
        parts.append(tuple(_converted(tensor[chosen], made.dtype) for tensor in tensors))
        rows, left = rows + take, left - take
        bar.update(take)
        done = chosen.stop >= len(block)
        position = Position(position.block + 1, 0) if done else Position(position.block, chosen.stop)
        if rows == made.shard_rows or (left == 0 and rows):
            made.position = (position.block, position.row)
            yield tuple(torch.cat(each) for each in zip(*parts, strict=True))
            parts, rows = [], 0
    if rows:
        made.position = (position.block, position.row)
        yield tuple(torch.cat(each) for each in zip(*parts, strict=True))


def _converted(rows: Tensor, dtype: str) -> Tensor:
    """On the CPU, in the cache's dtype."""
    out = rows.detach().to("cpu", DTYPES[dtype])
    if not torch.isfinite(out).all():
        if not torch.isfinite(rows).all():
            raise AdapterError("the source's activations are not finite")
        raise AdapterError(f"activations up to {float(rows.abs().max()):g} do not fit {dtype}; choose bfloat16")
    return out


def _same_tensor(source: ActivationSource) -> bool:
    """Whether the target is the input, by the first block."""
    block = source.block(0)
    return block.target is block.input
