"""Medians of interleaved rounds, by CUDA events (on a CPU, for a dry run, by the clock)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

FLUSH_BYTES = 256 << 20  # several times any L2
LEAD_CYCLES = 400_000  # about 0.2 ms of GPU time in which the host gets ahead with its launches


@dataclass(frozen=True)
class Times:
    """Milliseconds over the rounds."""

    median: float
    low: float
    high: float
    host: float  # median the host was busy before it could go on; near `median`, the host sets the pace (or waits)
    rounds: int


class Clock:
    """Times single calls. On a GPU the L2 cache holds none of the inputs when a call starts (unless `flush` is off)."""

    def __init__(self, device: torch.device, flush: bool = True) -> None:
        self.device = device
        self._cuda = device.type == "cuda"
        self._trash = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device) if flush and self._cuda else None

    def wait(self) -> None:
        """Until the device is idle."""
        if self._cuda:
            torch.cuda.synchronize(self.device)

    def __call__(self, function: Callable[[], object]) -> tuple[float, float]:
        """(milliseconds on the device, milliseconds of the host)."""
        if not self._cuda:
            start = time.perf_counter()
            function()
            ms = 1e3 * (time.perf_counter() - start)
            return ms, ms
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        if self._trash is not None:
            self._trash.zero_()
        torch.cuda._sleep(LEAD_CYCLES)
        start.record()
        before = time.perf_counter()
        function()
        host = 1e3 * (time.perf_counter() - before)
        end.record()
        end.synchronize()
        return start.elapsed_time(end), host


def interleaved(
    functions: dict[str, Callable[[], object]], clock: Clock, seconds: float, most: int = 25, least: int = 3
) -> tuple[dict[str, Times], dict[str, str]]:
    """(times, errors) of each, in turn, so that a change of the machine's speed meets all alike.

    As many rounds as fit into `seconds`, judged by one round of warm-up, from `least` to `most`. One that fails is out
    of the race; the others go on.
    """
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    errors: dict[str, str] = {}

    def turn(keep: bool) -> None:
        for name, function in functions.items():
            if name in errors:
                continue
            try:
                sample = clock(function)
            except Exception as error:  # whatever a contender throws is a result
                errors[name] = told(error)
                continue
            if keep:
                found[name].append(sample)

    start = time.perf_counter()
    turn(keep=False)
    clock.wait()
    once = max(1e-4, time.perf_counter() - start)
    rounds = max(least, min(most, int(seconds / once)))
    for _ in range(rounds):
        turn(keep=True)
    times = {}
    for name, samples in found.items():
        if name not in errors:
            ms = [sample[0] for sample in samples]
            host = statistics.median(sample[1] for sample in samples)
            times[name] = Times(statistics.median(ms), min(ms), max(ms), host, rounds)
    return times, errors


def told(error: BaseException) -> str:
    """One line of an error."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:400]}"
