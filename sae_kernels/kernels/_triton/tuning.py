"""Launch configurations: each kernel offers a few, curated by size class; the first is the built-in choice.

`pick` never measures anything. What `sae-kernels bench warmup` measured on this device replaces the built-in choice.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .. import _cache
from . import interpreting, pretending

VERSION = 1  # of the file
INTERPRETER = "interpreter"  # the device's name there


@dataclass(frozen=True)
class Config:
    """Tile sizes (the kernel's constexprs) and how a program is run."""

    tiles: Mapping[str, int] = field(hash=False)
    num_warps: int = 4
    num_stages: int = 2

    @property
    def meta(self) -> dict[str, int]:
        """As keyword arguments of a launch."""
        return {**self.tiles, "num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}

    def __str__(self) -> str:
        tiles = " ".join(f"{name}={size}" for name, size in self.tiles.items())
        return f"{tiles} warps={self.num_warps} stages={self.num_stages}"


@dataclass(frozen=True)
class Pick:
    """A configuration was asked for: by which kernel, for which sizes, out of which."""

    kernel: str
    size_class: str
    choices: tuple[Config, ...] = field(hash=False)


_forced: dict[str, Config] = {}
_recorders: list[list[Pick]] = []


@contextlib.contextmanager
def forced(kernel: str, config: Config) -> Iterator[None]:
    """Use this configuration of a kernel, whatever would be picked: for tests, and to measure it."""
    before = _forced.get(kernel)
    _forced[kernel] = config
    try:
        yield
    finally:
        if before is None:
            del _forced[kernel]
        else:
            _forced[kernel] = before


@contextlib.contextmanager
def recording() -> Iterator[list[Pick]]:
    """The list of what is picked meanwhile, in any thread (a backward runs in one of its own), each once."""
    picks: list[Pick] = []
    _recorders.append(picks)
    try:
        yield picks
    finally:
        _recorders.remove(picks)


def pick(kernel: str, size_class: str, choices: Sequence[Config]) -> Config:
    """The configuration of `kernel` for a size class (what it depends on, never the number of tokens)."""
    if _recorders:
        asked = Pick(kernel, size_class, tuple(choices))
        for picks in _recorders:
            if asked not in picks:
                picks.append(asked)
    if _forced and kernel in _forced:
        return _forced[kernel]
    stored = _measured().get((kernel, size_class))
    return choices[0] if stored is None or stored not in choices else stored  # no longer curated: ignored


def device_name() -> str:
    """The device kernels run on now; "" where none is (compiling ahead of time for another machine)."""
    if interpreting():
        return INTERPRETER
    return torch.cuda.get_device_name() if torch.cuda.is_available() and not pretending() else ""


def file_of(device: str) -> Path:
    """Where `sae-kernels bench warmup` stores what it measured on a device, with this version of Triton."""
    return _cache.path_of("tuning", device, "triton", importlib.metadata.version("triton"))


def read(device: str) -> dict[tuple[str, str], Config]:
    """What was measured on a device: configurations by kernel and size class."""
    path = file_of(device)
    data = _cache.load(path, {"version": VERSION, "device": device})
    if data is None:
        return {}
    try:
        return {
            (kernel, size_class): parse(config)
            for kernel, classes in data["configs"].items()
            for size_class, config in classes.items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        _cache.ignore(path, f"holds no configurations ({error})")
        return {}


def write(device: str, found: Mapping[tuple[str, str], Config], date: str) -> Path:
    """Add what was measured to what is stored; takes effect at once, in this process too."""
    configs: dict[str, dict[str, str]] = {}
    for (kernel, size_class), config in sorted({**read(device), **found}.items(), key=lambda item: item[0]):
        configs.setdefault(kernel, {})[size_class] = str(config)
    path = file_of(device)
    _cache.store(path, {"version": VERSION, "device": device, "date": date, "configs": configs})
    forget()
    return path


def parse(text: Any) -> Config:
    """The inverse of `str(config)`."""
    sizes = {name: int(size) for name, size in re.findall(r"(\w+)=(\d+)(?:\s|$)", text)}
    config = Config(sizes, sizes.pop("warps"), sizes.pop("stages"))
    if str(config) != text:
        raise ValueError(f"{text!r} is no configuration")
    return config


_by_device = functools.lru_cache(maxsize=64)(read)
_by_index: dict[int, dict[tuple[str, str], Config]] = {}


def _measured() -> dict[tuple[str, str], Config]:
    """The table of the current device, read once in a process."""
    if pretending():
        return {}
    index = -1 if interpreting() else torch.cuda.current_device()
    table = _by_index.get(index)
    if table is None:
        table = _by_index[index] = _by_device(device_name())
    return table


def forget() -> None:
    """Read the files again at the next need."""
    _by_device.cache_clear()
    _by_index.clear()
