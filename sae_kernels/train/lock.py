"""One training process to a run directory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import TrainingError

try:
    import fcntl
except ImportError:  # not POSIX
    fcntl = None


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the directory's lock. The operating system drops it with the process, however that ends.

    Raises:
        TrainingError: another process (or this one) trains there; names it. OSError: the directory can't be
        written.
    """
    path = directory / ".lock"
    with path.open("a+", encoding="utf-8") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                owner = file.read().strip() or "another process"
                raise TrainingError(
                    f"{directory}: {owner} is training here; wait for it, or choose another output.dir"
                ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        yield
