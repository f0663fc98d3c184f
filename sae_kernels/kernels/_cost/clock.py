"""Milliseconds of short calls: many in a row, on a GPU between two events, so that waiting for it costs nothing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

LEAST_MS = 2.0  # of one measurement; a shorter call is made several times
MOST_CALLS = 1000


def _once(function: Callable[[], object], device: torch.device, calls: int) -> float:
    """Milliseconds a call, of `calls` in a row."""
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(calls):
            function()
        return 1e3 * (time.perf_counter() - start) / calls
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    for _ in range(calls):
        function()
    after.record()
    after.synchronize()
    return before.elapsed_time(after) / calls


def interleaved(
    functions: Mapping[str, Callable[[], object]], device: torch.device, rounds: int = 5
) -> dict[str, float]:
    """Median milliseconds of each, run in turn so that a change of the machine's speed meets all alike."""
    calls = {}
    for name, function in functions.items():
        function()  # compiles, and fills caches
        took = _once(function, device, 1)
        calls[name] = min(MOST_CALLS, max(1, round(LEAST_MS / max(took, 1e-6))))
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(_once(function, device, calls[name]))
    return {name: statistics.median(each) for name, each in times.items()}


def least(function: Callable[[], object], device: torch.device, rounds: int = 5) -> float:
    """The fewest milliseconds a call took: what the device can do when nobody disturbs it."""
    function()
    took = _once(function, device, 1)
    calls = min(MOST_CALLS, max(1, round(LEAST_MS / max(took, 1e-6))))
    return min(_once(function, device, calls) for _ in range(rounds))
