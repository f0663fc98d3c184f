"""The runs as a table."""

from __future__ import annotations

import math
import statistics
from typing import Any

from bench.quality.runs import L0, at_l0

HEAD = [
    f"| architecture | library | lr | L0 of the runs | FVU at L0 {L0:g}, by seed | mean | range |",
    "|---|---|---|---|---|---|---|",
]


def table(runs: list[dict[str, Any]], names: list[tuple[str, str]]) -> str:
    """Markdown: a line for each (row, library) that has runs and each learning rate, from the rows of `test`."""
    lines = list(HEAD)
    for row, library in names:
        mine = [run for run in runs if (run["row"], run["library"]) == (row, library)]
        lines += [_line([run for run in mine if run["lr"] == lr]) for lr in sorted({run["lr"] for run in mine})]
    return "\n".join(lines)


def _line(runs: list[dict[str, Any]]) -> str:
    seeds = sorted({run["seed"] for run in runs})
    found = [at_l0([run for run in runs if run["seed"] == seed]) for seed in seeds]
    known = [value for value in found if not math.isnan(value)]
    levels = sorted(run["test"]["l0"] for run in runs if run["seed"] == seeds[0])
    numbers = f"{statistics.fmean(known):.4f} | {max(known) - min(known):.4f}" if known else "none | "
    first = runs[0]
    cells = [
        first["row"],
        first["library"],
        f"{first['lr']:g}",
        ", ".join(f"{level:.1f}" for level in levels),
        ", ".join(f"{value:.4f}" for value in found),
    ]
    return f"| {' | '.join(cells)} | {numbers} |"
