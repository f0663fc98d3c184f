"""Results as text."""

from __future__ import annotations

from typing import Any

from bench.peers.race import OURS, PATCHED, PLAIN

HEAD = f"{'':47}{'plain':>11}{'patched':>12}{'':>9}{'our trainer':>12}{'':>9}   peak extra MiB"


def line(row: dict[str, Any]) -> str:
    """One operation: milliseconds, and how many times faster than the plain one; memory in the same order."""
    ms, mib = row["ms"], row["peak_extra_mib"]
    text = f"{row['host']:20}{row['operation']:19}{row['dtype']:>8}{ms[PLAIN]:11.1f}"
    for name in (PATCHED, OURS):
        text += f"{ms[name]:12.1f}{ms[PLAIN] / ms[name]:8.1f}x" if name in ms else 21 * " "
    shown = (mib[name] for name in (PLAIN, PATCHED, OURS) if mib.get(name) is not None)
    return (text + "   " + " / ".join(f"{each:.0f}" for each in shown)).rstrip()


def head(data: dict[str, Any]) -> str:
    """What the figures depend on."""
    about = data["about"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return (
        f"{about['date']}   {about['cpu']}, {about['threads']} threads, ISA {about['isa']}, {about['size']}, "
        f"{about['rounds']} rounds, medians\n{versions}"
    )


def table(data: dict[str, Any]) -> str:
    """All of it."""
    return "\n".join([head(data), HEAD, *(line(row) for row in data["rows"])])
