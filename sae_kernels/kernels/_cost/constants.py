"""What a device can do, in a handful of numbers: built in for some, measured where the user asked for it."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import _cache

VERSION = 1  # of the file; raised when a constant changes its meaning
NOTHING = 1e-18  # seconds: a cost that a device does not have
GEMM = ("float32", "tf32", "bfloat16", "float16")


@dataclass(frozen=True)
class Constants:
    """Rates of one device. Bytes count what is read and what is written."""

    gemm: Mapping[str, float]  # FLOP/s of a large matrix product, by `GEMM`
    half_rows: float  # rows of output at which a GEMM reaches half of that rate
    copy: float  # bytes/s
    gather: float  # bytes/s of rows picked at random from a matrix in memory
    gather_cached: float  # the same from one that fits into `cache`
    cache: float  # bytes
    launch: float  # seconds of one more launch, or one more call into torch
    sort: float  # seconds for a slot, where slots are sorted by latent
    scatter: float  # seconds for a slot that is written into a dense table
    pair: float  # seconds to compare two slots of a row for duplicates; next to nothing where nothing is compared
    rounding: float  # seconds to round a number of a dense table to 16 bits, where sums are kept apart from it

    def __post_init__(self) -> None:
        flat = [*self.gemm.values(), *(v for k, v in vars(self).items() if k != "gemm")]
        if set(self.gemm) != set(GEMM) or not all(isinstance(v, (int, float)) and 0 < v < math.inf for v in flat):
            raise ValueError("constants must be positive numbers, with a rate for each of " + ", ".join(GEMM))


def _gpu(bf16: float, tf32: float, fp32: float, copy: float, cache: float) -> Constants:
    """Orders of magnitude for what was not measured: rows from L2 come 1.4 times as fast, a launch takes 4 µs."""
    gemm = {"float32": fp32, "tf32": tf32, "bfloat16": bf16, "float16": bf16}
    return Constants(gemm, 128, copy, copy, 1.4 * copy, cache, 4e-6, 5e-11, 1e-11, 1e-11 / 64, NOTHING)


# By a part of the device's name, the first that fits. GEMM (bfloat16) and copy of H200 and H100 are measured, the rest
# is what the vendor promises less a tenth or so.
GPUS = {
    "H200": _gpu(790e12, 395e12, 50e12, 4.3e12, 50 << 20),
    "H100": _gpu(798e12, 395e12, 50e12, 3.0e12, 50 << 20),
    "A100": _gpu(250e12, 125e12, 18e12, 1.6e12, 40 << 20),
}
GENERIC_GPU = _gpu(100e12, 50e12, 15e12, 0.8e12, 6 << 20)


def _cpu(threads: int, fp32: float, bf16: float, fp16: float) -> Constants:
    """FLOP/s of a thread. Without instructions for float16, PyTorch multiplies it a number at a time."""
    gemm = {"float32": fp32 * threads, "tf32": fp32 * threads, "bfloat16": bf16 * threads, "float16": fp16 * threads}
    bandwidth = 16e9 * threads
    return Constants(
        gemm,
        8,
        bandwidth,
        bandwidth,
        2 * bandwidth,
        1 << 20,
        3e-6,
        14e-9 / threads,
        14e-9 / threads,
        NOTHING,
        6 / bandwidth,
    )


CPUS = {"AVX512": (100e9, 200e9, 1e9), "AVX2": (50e9, 20e9, 1e9)}
GENERIC_CPU = (30e9, 10e9, 1e9)


@dataclass(frozen=True)
class InForce:
    """The constants used for a device, and where they come from."""

    constants: Constants
    device: str
    source: str
    known: bool  # measured on this device, or on one of its kind

    @property
    def margin(self) -> float:
        """A kernel of lower priority takes over where its estimate is below this times the first one's.

        The other kernel is a GEMM, whose time is predictable; a gather's depends on the codes. Where the constants are
        known, doubt therefore goes to the GEMM: the sparse kernel runs only if it is predicted a tenth faster, so that
        an error of a tenth leaves nothing slower than dense PyTorch. Where they are guesses it runs unless the GEMM is
        clearly the cheaper: a wrong guess must not cost anyone what makes sparse codes worth having.
        """
        return 1 / 0.9 if self.known else 0.6


def device_name(device: torch.device) -> str:
    """The model, as the driver or the kernel tells it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = (line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
            return next(names, "") or platform.machine()
    except OSError:
        return platform.processor() or platform.machine() or "cpu"


def cores() -> int:
    """Those this process may use; not torch's number of threads, so that a choice does not depend on that."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def built_in(device: torch.device) -> InForce:
    """What is assumed of a device nobody measured."""
    name = device_name(device)
    if device.type == "cuda":
        for part, constants in GPUS.items():
            if part in name:
                return InForce(constants, name, f"built in for {part}", known=True)
        return InForce(GENERIC_GPU, name, "built-in guess for any GPU", known=False)
    kind = torch.backends.cpu.get_cpu_capability()
    rates = CPUS.get(kind, GENERIC_CPU)
    what = f"with {kind}" if kind in CPUS else ""
    return InForce(_cpu(cores(), *rates), name, f"built-in guess for any CPU {what}".strip(), known=False)


def file_of(device: torch.device) -> Path:
    """Where `sae-kernels bench calibrate` stores what it measured on this device."""
    return _cache.path_of("calibration", device_name(device))


def read(device: torch.device) -> InForce | None:
    """What was measured on this device, if anything was."""
    path, name = file_of(device), device_name(device)
    data = _cache.load(path, {"version": VERSION, "device": name})
    if data is None:
        return None
    try:
        constants = Constants(**data["constants"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        _cache.ignore(path, f"holds no constants ({error})")
        return None
    return InForce(constants, name, f"measured {data.get('date', 'some day')}, {path}", known=True)


def write(device: torch.device, constants: Constants, date: str) -> Path:
    """Store what was measured; takes effect at once, in this process too."""
    path = file_of(device)
    found: dict[str, Any] = dataclasses.asdict(constants)
    _cache.store(path, {"version": VERSION, "device": device_name(device), "date": date, "constants": found})
    forget()
    return path


@functools.lru_cache(maxsize=64)
def in_force(device: torch.device) -> InForce:
    """The constants of a device: measured, else built in. Read once in a process."""
    return read(device) or built_in(device)


def forget() -> None:
    """Read the files again at the next need, and decide anew."""
    from .. import _kernel  # which asks for constants itself

    in_force.cache_clear()
    _kernel.forget_decisions()
