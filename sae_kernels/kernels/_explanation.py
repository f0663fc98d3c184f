"""What `explain` tells: every kernel of an op, and why it would run or not."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """One line of an explanation: a backend, why it declines (None: it would run), what it is thought to take, on what
    terms it runs, and how."""

    backend: str
    reason: str | None
    estimated_ms: float | None = None
    terms: str = ""
    how: str = ""

    def __str__(self) -> str:
        estimate = "" if self.estimated_ms is None else f" (estimated {_milliseconds(self.estimated_ms)})"
        terms = f" ({self.terms})" if self.terms and self.reason is None else ""
        how = f" ({self.how})" if self.how else ""
        return f"{self.backend}: {self.reason or 'would run'}{estimate}{how}{terms}"


@dataclass(frozen=True)
class Explanation:
    """What would run an op on given arguments, and why the others would not."""

    op: str
    arguments: str
    candidates: tuple[Candidate, ...]
    chosen: str | None
    because: str

    def __str__(self) -> str:
        lines = [f"{self.op}: {self.chosen or 'nothing'} ({self.because})", f"  {self.arguments}"]
        return "\n".join(lines + [f"  {candidate}" for candidate in self.candidates])


def _milliseconds(ms: float) -> str:
    return f"{ms:.0f} ms" if ms >= 100 else f"{ms:.1f} ms" if ms >= 1 else f"{ms:.3f} ms"
