"""Launch configurations: each kernel offers a few, curated by size class; the first is the built-in choice.

`pick` never measures anything. What `sae-kernels bench warmup` measured on this device replaces the built-in choice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field


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


_forced: dict[str, Config] = {}


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


def pick(kernel: str, size_class: str, choices: Sequence[Config]) -> Config:
    """The configuration of `kernel` for a size class (what it depends on, never the number of tokens)."""
    return _forced.get(kernel) or choices[0]
