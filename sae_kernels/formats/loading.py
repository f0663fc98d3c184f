"""`load` and `save`, over whatever formats the plugins register."""

from __future__ import annotations

import os
from pathlib import Path

from .. import registry
from ..architectures import SparseCoder
from ..errors import FormatError
from ..specs import resolve


def load(path: str | os.PathLike[str], format: str | None = None) -> SparseCoder:
    """A coder from disk, in eval mode: what it encodes is what it was trained for (a running threshold, say, in the
    place of a choice over the batch); `.train()` to go on training. Without `format`, the first registered one that
    recognises the path.

    Raises:
        FormatError: nothing there, no format recognises it, or the file is damaged (naming file, tensor, found and
        expected). UnknownNameError: no format of that name.
    """
    at = Path(path)
    if not at.exists():
        raise FormatError(f"{at}: no such file or directory")
    readers = [spec for spec in registry.formats.all() if spec.load is not None]
    if format is not None:
        spec = registry.formats.get(format)
        if spec.load is None:
            raise FormatError(f"format {format!r} can be written, not read; readable: {[r.name for r in readers]}")
        return resolve(spec.load)(at).eval()
    for spec in readers:
        if resolve(spec.matches)(at):
            return resolve(spec.load)(at).eval()  # pyright: ignore[reportArgumentType]
    hint = f"; did you mean {at / 'coder'}?" if (at / "coder").is_dir() else ""
    raise FormatError(f"{at}: none of the formats {[r.name for r in readers]} recognises it{hint}")


def save(coder: SparseCoder, path: str | os.PathLike[str], format: str = "sae_kernels") -> None:
    """Write a coder. Nothing is half-written: an error leaves what was there.

    Raises:
        UnknownNameError: no format of that name. FormatError: it cannot be written, or cannot hold this coder.
    """
    spec = registry.formats.get(format)
    if spec.save is None:
        writers = [other.name for other in registry.formats.all() if other.save is not None]
        raise FormatError(f"format {format!r} can be read, not written; writable: {writers}")
    resolve(spec.save)(coder, Path(path))
