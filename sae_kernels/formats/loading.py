"""`load` and `save`, over whatever formats the plugins register."""

from __future__ import annotations

import os
from pathlib import Path

from .. import registry
from ..architectures import SparseCoder
from ..errors import FormatError
from ..specs import resolve
from . import hub


def load(
    path: str | os.PathLike[str],
    format: str | None = None,
    *,
    revision: str | None = None,
    local_files_only: bool = False,
) -> SparseCoder:
    """A coder from disk, in eval mode: what it encodes is what it was trained for (a running threshold, say, in the
    place of a choice over the batch); `.train()` to go on training. Without `format`, the first registered one that
    recognises the path.

    `path` may be `hf:owner/name[/folder or file][@revision]`, from the Hugging Face hub or its cache (needs
    `pip install sae-kernels[hub]`); `revision` and `local_files_only` are for these.

    Raises:
        FormatError: nothing there, no format recognises it, or the file is damaged (naming file, tensor, found and
        expected). UnknownNameError: no format of that name.
    """
    if isinstance(path, str) and path.startswith(hub.PREFIX):
        path = hub.fetch(path, revision=revision, local_files_only=local_files_only)
    elif revision is not None or local_files_only:
        raise FormatError(f"{path}: revision and local_files_only are for hf:owner/name")
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
