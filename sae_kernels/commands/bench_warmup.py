"""`sae-kernels bench warmup`: compile the Triton kernels for a size and find the best launch configuration of each."""

from __future__ import annotations

import argparse
import datetime
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from ..errors import BackendError, DeviceError
from ..kernels._cost import clock
from ..kernels._triton import interpreting
from .bench_sizes import DTYPES, current, device_of, shape_of
from .bench_warmup_calls import calls

if TYPE_CHECKING:
    from ..kernels._triton.tuning import Config, Pick

GAIN = 0.97  # another configuration replaces the built-in one where it takes at most this much of its time
ABOUT = (
    "compile the GPU kernels for a size and keep the best launch configuration of each: no surprise at the first step"
)
EPILOG = """Triton compiles a kernel when it is first used. This does so ahead of time (the compiled kernels lie in
Triton's own cache), tries the few configurations that each kernel offers, and keeps the winners in the cache
directory (SAE_KERNELS_CACHE). Run it once for each size and dtype that you train. docs/tuning.md says more.

example:
  sae-kernels bench warmup --shape 4096,768,24576,32 --dtype bfloat16"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of its own."""
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds, of which the median counts")


def run(args: argparse.Namespace) -> None:
    """Tune, compile, store."""
    device = device_of(args.device)
    if device.type != "cuda" and not interpreting():
        raise DeviceError(f"warmup: nothing to tune on {device.type}, only the GPU kernels have configurations")
    with current(device):
        _tune(shape_of(args), args.dtype, device, args.rounds)


def _tune(shape: tuple[int, int, int, int], dtype: str, device: torch.device, rounds: int) -> None:
    from ..kernels._triton import tuning

    n, d, m, k = shape
    print(f"{tuning.device_name()}   N {n}  d {d}  d_sae {m}  k {k}  {dtype}", flush=True)
    found: dict[tuple[str, str], Config] = {}
    seen: set[tuple[str, str]] = set()
    for name, call in calls(n, d, m, k, DTYPES[dtype], device):
        try:
            with tuning.recording() as picks:
                call()
        except BackendError as error:
            print(f"  {name}: skipped, {_reason(error)}", flush=True)
            continue
        for pick in picks:
            if (pick.kernel, pick.size_class) not in seen:
                seen.add((pick.kernel, pick.size_class))
                found[pick.kernel, pick.size_class] = _best(pick, call, device, rounds)
        call()  # with what was chosen: compiled now
    if not found:
        raise DeviceError("warmup: no kernel could be run")
    print(f"stored in {tuning.write(tuning.device_name(), found, datetime.date.today().isoformat())}")


def _reason(error: BackendError) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line.startswith("triton:")), lines[0])


def _best(pick: Pick, call: Callable[[], object], device: torch.device, rounds: int) -> Config:
    """The configuration with which the op takes least; the built-in one unless another is clearly faster."""
    from ..kernels._triton import tuning

    def forced(config: Config) -> None:
        with tuning.forced(pick.kernel, config):
            call()

    able, reasons = {}, []
    for config in pick.choices:
        try:
            forced(config)
        except Exception as error:  # too many registers or too much shared memory for this device: Triton's own errors
            reasons.append(f"{config}: {type(error).__name__}")
        else:
            able[str(config)] = config
    if not able:
        raise BackendError(f"{pick.kernel}: no configuration runs ({'; '.join(reasons)})")
    first = next(iter(able))
    ms = clock.interleaved({name: functools.partial(forced, config) for name, config in able.items()}, device, rounds)
    best = min(ms, key=lambda name: ms[name])
    if ms[best] > GAIN * ms[first]:
        best = first
    note = "built in" if best == str(pick.choices[0]) else f"{ms[first] / ms[best]:.2f} times as fast as {first}"
    print(f"  {pick.kernel:16} {pick.size_class:36} {best}  ({note}, of {len(ms)})", flush=True)
    return able[best]
