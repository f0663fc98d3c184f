"""One comparison: contenders whose results are compared before they are timed, and what the hardware would allow."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bench.gpu.roofline import Roofline
from bench.gpu.timing import Clock, interleaved, told

OURS = "sae_kernels"
Phases = list[tuple[float, float]]  # (flops, bytes) of steps that must follow each other
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}  # of the norm


@dataclass(frozen=True)
class Contender:
    """Something that computes the result."""

    run: Callable[[], Any]
    shows: Callable[[Any], Tensor] | None = None  # the part of what it returns that is compared; None: only timed
    needs_bytes: int = 0  # memory beyond what is there already
    why_not: str | None = None  # a reason known beforehand


@dataclass(frozen=True)
class Comparison:
    """Contenders for one computation; `least` is the work nobody can avoid."""

    group: str
    name: str
    least: Phases
    contenders: dict[str, Contender] = field(default_factory=dict)
    tolerance: float | None = None  # None: of the dtype; 0: exact

    def run(self, clock: Clock, roofline: Roofline, dtype: torch.dtype, seconds: float) -> dict[str, Any]:
        """Check, time, and tell: what goes into the results."""
        tolerance = TOLERANCE[dtype] if self.tolerance is None else self.tolerance
        rows: dict[str, dict[str, Any]] = {}
        shown: dict[str, Tensor] = {}
        for name, contender in self.contenders.items():
            rows[name] = {"name": name, "status": "ok"}
            reason = contender.why_not or _lacks(contender.needs_bytes, clock.device)
            if reason is not None:
                rows[name].update(status="skipped", reason=reason)
                continue
            try:
                result, rows[name]["peak_mib"] = _once(contender, clock.device)
                if result is not None:
                    shown[name] = result
            except Exception as error:  # a contender that fails is a result too
                rows[name].update(status="failed", reason=told(error))
                _release()
        self._compare(rows, shown, tolerance)
        shown.clear()
        _release()
        running = {name: self.contenders[name].run for name, row in rows.items() if row["status"] == "ok"}
        times, errors = interleaved(running, clock, seconds, least=3 if clock.device.type == "cuda" else 1)
        for name, reason in errors.items():
            rows[name].update(status="failed", reason=reason)
        least_ms = roofline.milliseconds(self.least, dtype)
        flops, moved = (sum(phase[i] for phase in self.least) for i in (0, 1))
        for name, took in times.items():
            rows[name].update(
                ms=took.median,
                low_ms=took.low,
                high_ms=took.high,
                host_ms=took.host,
                rounds=took.rounds,
                roofline_share=least_ms / took.median,
                tflops=flops / took.median * 1e-9,
                tb_per_s=moved / took.median * 1e-9,
            )
        if OURS in times:
            for name, took in times.items():
                rows[name]["ratio"] = took.median / times[OURS].median
        return {
            "group": self.group,
            "name": self.name,
            "least_flops": flops,
            "least_bytes": moved,
            "roofline_ms": least_ms,
            "contenders": list(rows.values()),
        }

    def _compare(self, rows: dict[str, dict[str, Any]], shown: dict[str, Tensor], tolerance: float) -> None:
        """Everyone against the first opponent that ran: who computes something else is not timed."""
        truth = next((name for name in shown if name != OURS), None)
        if truth is None:
            return
        expected = shown[truth].float()
        for name, found in shown.items():
            if name == truth:
                continue
            if found.shape != expected.shape:
                told = f"its result is {tuple(found.shape)}, that of {truth} {tuple(expected.shape)}"
                rows[name].update(status="failed", reason=told)
                continue
            norm = expected.norm()
            error = float((found.float() - expected).norm() / torch.where(norm > 0, norm, 1))
            rows[name]["error"] = error
            if not error <= tolerance:
                told = f"differs from {truth} by {error:.1e} of the norm, allowed {tolerance:.0e}"
                rows[name].update(status="failed", reason=told)


def _once(contender: Contender, device: torch.device) -> tuple[Tensor | None, float | None]:
    """What is compared, and the peak memory of one call beyond what was there (MiB).

    Twice on a GPU: the first call may compile, and allocate for it.
    """
    shows = contender.shows or (lambda _: None)
    first = contender.run()
    if device.type != "cuda":
        return _kept(shows(first)), None
    del first
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    result = contender.run()
    torch.cuda.synchronize(device)
    peak = (torch.cuda.max_memory_allocated(device) - before) / 2**20
    return _kept(shows(result)), peak


def _kept(shown: Tensor | None) -> Tensor | None:
    """Apart from what the next call may overwrite."""
    return None if shown is None else shown.detach().clone()


def _lacks(needs: int, device: torch.device) -> str | None:
    """Why `needs` bytes cannot be had."""
    if device.type != "cuda" or not needs:
        return None
    _release()
    free = torch.cuda.mem_get_info(device)[0]
    if needs <= 0.95 * free:
        return None
    return f"needs {needs / 2**30:.0f} GiB, {free / 2**30:.0f} are free"


def _release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
