"""metrics.jsonl: one JSON object a line, as if the run had never been interrupted."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path


class MetricsLog:
    """Appends lines; what lies beyond `step`, where the run goes on, is cut off first."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self._file = path.open("a+b")
        self.last: dict[str, float] = {}
        self._file.truncate(self._end_of(step))
        self._file.seek(0, os.SEEK_END)

    def write(self, metrics: Mapping[str, float]) -> None:
        """One line, handed to the operating system at once. JSON has no nan and no infinity: they become
        null."""
        self._file.write(json.dumps(finite(metrics)).encode() + b"\n")
        self._file.flush()

    def sync(self) -> None:
        """On disk before a checkpoint that says so."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """No more lines."""
        self._file.close()

    def _end_of(self, step: int) -> int:
        """The offset after the last whole line of a step up to `step`, which becomes `last`."""
        self._file.seek(0)
        end = 0
        for line in self._file:
            try:
                metrics = json.loads(line)
                if not line.endswith(b"\n") or metrics["step"] > step:
                    break
            except (ValueError, KeyError, TypeError):  # cut short by a kill
                break
            self.last = metrics
            end += len(line)
        return end


def finite(metrics: Mapping[str, float | None]) -> dict[str, float | None]:
    """As JSON can hold them: it has no nan and no infinity, so they become null."""
    return {name: value if value is not None and math.isfinite(value) else None for name, value in metrics.items()}
