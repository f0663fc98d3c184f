"""One training run, and what it came to."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor

from bench.quality.budget import Job
from bench.quality.contenders import Contender
from bench.quality.rows import Rows
from bench.quality.trainee import Trainee

L0 = 24.0
NEAR = 0.005  # a run whose L0 is as near to this as that, is at it
FARTHEST = 4.0  # factor between settings that one run may be from the next


def train(contender: Contender, job: Job, rows: Rows) -> dict[str, Any]:
    """One run, and its L0 and FVU on the rows of `test` and `validation`."""
    trainee = contender.make(job)
    rows = rows.scaled(trainee.scale)
    x, y = rows.train
    size, steps = job.budget.batch, job.budget.steps
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(job.seed))
    unfired = torch.zeros(job.budget.d_sae)
    begun = time.perf_counter()
    for step in range(steps):
        batch = order[torch.arange(step * size, (step + 1) * size) % len(order)]
        inputs = x[batch]
        targets = inputs if y is x else y[batch]
        fired = trainee.step(step, inputs, targets, unfired >= job.budget.dead_after)
        unfired = torch.where(fired, 0, unfired + 1)
    seconds = time.perf_counter() - begun
    return {
        "row": contender.row,
        "library": contender.library,
        "setting": job.setting,
        "steps": steps,
        "lr": job.lr,
        "seed": job.seed,
        "test": _measured(trainee, *rows.test),
        "validation": _measured(trainee, *rows.validation),
        "dead": float((unfired >= job.budget.dead_after).float().mean()),
        "seconds": round(seconds, 1),
    }


@torch.no_grad()
def _measured(trainee: Trainee, x: Tensor, y: Tensor) -> dict[str, float]:
    l0, reconstruction = trainee.infer(x)
    fvu = (y - reconstruction).double().square().sum() / (y - y.mean(0)).double().square().sum()
    return {"l0": float(l0.double().mean()), "fvu": float(fvu)}


def at_l0(runs: list[dict[str, Any]], part: str = "test") -> float:
    """FVU at `L0`: of the run that is there, or on the line in log L0 through the two runs nearest to it, one on each
    side where there are; nan with fewer than two, or more than a factor 1.2 beyond the last."""
    found = sorted((run[part] for run in runs if run[part]["l0"] > 0), key=lambda run: run["l0"])
    there = [run for run in found if abs(run["l0"] / L0 - 1) <= NEAR]
    if there:
        return min(there, key=lambda run: abs(run["l0"] - L0))["fvu"]
    if len(found) < 2 or not found[0]["l0"] / 1.2 <= L0 <= found[-1]["l0"] * 1.2:
        return math.nan
    upper = min(max(1, sum(run["l0"] < L0 for run in found)), len(found) - 1)
    a, b = found[upper - 1], found[upper]
    share = math.log(L0 / a["l0"]) / math.log(b["l0"] / a["l0"])
    return a["fvu"] + share * (b["fvu"] - a["fvu"])


def next_setting(runs: list[dict[str, Any]]) -> float | None:
    """Where log L0 over log setting, a line through the two runs nearest to `L0`, comes to it; None with fewer than
    two, or where L0 does not depend on the setting."""
    points = [(math.log(run["setting"]), math.log(run["test"]["l0"])) for run in runs if run["test"]["l0"] > 0]
    points.sort(key=lambda point: abs(point[1] - math.log(L0)))
    if len(points) < 2 or points[0][1] == points[1][1]:
        return None
    (x0, y0), (x1, y1) = points[:2]
    step = (math.log(L0) - y0) * (x1 - x0) / (y1 - y0)
    return math.exp(x0 + step) if abs(step) < math.log(FARTHEST) else None


def best_lr(runs: list[dict[str, Any]]) -> float:
    """Of the lowest seed, the rate with the least FVU on the rows of `validation`."""
    rates = sorted({run["lr"] for run in runs})
    first = min(run["seed"] for run in runs)
    found = {lr: at_l0([run for run in runs if (run["lr"], run["seed"]) == (lr, first)], "validation") for lr in rates}
    return min(rates, key=lambda lr: (math.isnan(found[lr]), found[lr]))
