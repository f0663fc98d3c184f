"""This CPU's ceilings: products of fp32, bf16 and int8, and bandwidth of its caches and memory, as torch reaches them:
`python bench/roofline_cpu.py`, a minute.

Medians of interleaved rounds on Gaussian numbers, with their best beside them: on a shared machine, the two lie apart.
A cache is read through one row of half its size (L3: a quarter, it is shared) that is summed over and over; memory,
through 1 GiB. A copy moves every byte twice. For a GPU: gpu/roofline.py.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

SIDE, SLOW_SIDE = 2048, 384  # of products; of those at less than SLOW operations a second
SLOW = 20e9
GIB = 1 << 30
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


@dataclass(frozen=True)
class Ceiling:
    """`run` does `work` operations, or moves so many bytes."""

    what: str
    unit: str
    work: float
    run: Callable[[], object]


def cache_bytes(level: int, default: int) -> int:
    """Size of a data cache, as Linux tells it."""
    for index in sorted(CACHES.glob("index*")):
        if (index / "level").read_text().strip() == str(level) and "Instr" not in (index / "type").read_text():
            return int((index / "size").read_text().strip().removesuffix("K")) << 10
    return default


def seconds(run: Callable[[], object]) -> float:
    """Of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def product(what: str, multiply: Callable[[torch.Tensor, torch.Tensor], object], dtype: torch.dtype) -> Ceiling:
    """A product of two square matrices, small where it is slow."""

    def of(side: int) -> Ceiling:
        drawn = torch.randn(2, side, side)
        a, b = (drawn * 40).clamp(-127, 127).to(dtype) if dtype == torch.int8 else drawn.to(dtype)
        return Ceiling(what, "GFLOP/s", 2 * side**3, lambda: multiply(a, b))

    small = of(SLOW_SIDE)
    small.run()
    return of(SIDE) if small.work / seconds(small.run) > SLOW else small


def products() -> list[Ceiling]:
    """What encoding is made of."""
    out = {dtype: torch.empty(0, dtype=dtype) for dtype in (torch.float32, torch.bfloat16, torch.int32)}

    def mm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.mm(a, b, out=out[a.dtype].resize_(a.shape))

    def int_mm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.ops.aten._int_mm.out(a, b, out=out[torch.int32].resize_(a.shape))

    return [
        product("GEMM fp32", mm, torch.float32),
        product("GEMM bf16", mm, torch.bfloat16),
        product("GEMM int8", int_mm, torch.int8),
    ]


def reading(what: str, row_bytes: int, total_bytes: int) -> Ceiling:
    """One row, as a matrix of many."""
    row, rows = torch.randn(row_bytes // 4), max(1, total_bytes // row_bytes)
    matrix, out = row.expand(rows, -1), torch.empty(rows)
    return Ceiling(what, "GB/s", 4 * row.numel() * rows, lambda: torch.sum(matrix, 1, out=out))


def bandwidths() -> list[Ceiling]:
    """What selecting and decoding are made of."""
    l2, l3 = cache_bytes(2, 1 << 20), cache_bytes(3, 1 << 25)
    source = torch.randn(GIB // 4)
    target = torch.empty_like(source)
    matrix, sums = source.view(64, -1), torch.empty(64)
    return [
        reading(f"read L2 ({l2 >> 10} KiB)", l2 // 2, 1 << 28),
        reading(f"read L3 ({l3 >> 20} MiB)", l3 // 4, 1 << 28),
        Ceiling("read memory", "GB/s", GIB, lambda: torch.sum(matrix, 1, out=sums)),
        Ceiling("copy memory", "GB/s", 2 * GIB, lambda: target.copy_(source)),
    ]


def measured(ceilings: list[Ceiling], rounds: int) -> dict[str, tuple[float, float]]:
    """(median, best) rates in units of 1e9."""
    times: dict[str, list[float]] = {each.what: [] for each in ceilings}
    for each in ceilings:
        each.run()
    for _ in range(rounds):
        for each in ceilings:
            times[each.what].append(seconds(each.run))
    return {
        each.what: (each.work / statistics.median(t) / 1e9, each.work / min(t) / 1e9)
        for each, t in zip(ceilings, times.values(), strict=True)
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}))
    arguments = parser.parse_args()
    ceilings, found = [*products(), *bandwidths()], {}
    for threads in arguments.threads:
        print(f"{threads} threads ...", file=sys.stderr, flush=True)
        torch.set_num_threads(threads)
        found[threads] = measured(ceilings, arguments.rounds)
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}; median (best) of {arguments.rounds}")
    heads = (f"{threads} thread{'s' * (threads > 1)}" for threads in arguments.threads)
    print(f"{'':20}" + "".join(f"{head:>24}" for head in heads))
    for each in ceilings:
        cells = (found[threads][each.what] for threads in arguments.threads)
        print(f"{each.what:20}" + "".join(f"{middle:8.1f} ({best:6.1f}) {each.unit:7}" for middle, best in cells))


if __name__ == "__main__":
    main()
