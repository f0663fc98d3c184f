"""Measure a device's `Constants`: a matrix product in each dtype, a copy, rows gathered by our own kernel, launches."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from .._dense import table
from .._triton.inputs import Codes
from .clock import least
from .constants import GEMM, Constants, built_in

K = 64  # slots a token of the codes that are gathered
D = 1024


def cache_bytes(device: torch.device) -> int:
    """The last-level cache."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    sizes = [1 << 20]
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        found = re.fullmatch(r"(\d+)([KMG])", file.read_text(encoding="utf-8").strip())
        if found:
            sizes.append(int(found[1]) << {"K": 10, "M": 20, "G": 30}[found[2]])
    return max(sizes)


def measure(device: torch.device, least_ms: float | None = None) -> Constants:
    """The constants of a device in a few seconds. `least_ms`: how long the matrix products measured take at least."""
    assumed = built_in(device).constants
    on_gpu = device.type == "cuda"
    least_ms = least_ms or (5.0 if on_gpu else 60.0)
    gemm = {name: _gemm(device, name, least_ms) for name in GEMM if name != "tf32" or on_gpu}
    gemm.setdefault("tf32", gemm["float32"])
    cache = cache_bytes(device)
    scale = min(1.0, least_ms / 60.0) if not on_gpu else 1.0
    slots = int((16_384 if on_gpu else 1024) * max(scale, 0.02))  # rows of them
    memory = _gather(device, int(max(4 * cache, 128 << 20) * scale), scale)
    cached = _gather(device, cache // 4, scale)
    return Constants(
        gemm=gemm,
        half_rows=assumed.half_rows,
        pair=assumed.pair,
        rounding=assumed.rounding if on_gpu else _rounding(int((64 << 20) * scale)),
        copy=_copy(device, int((1 << 30 if on_gpu else 128 << 20) * scale)),
        gather=memory,
        gather_cached=max(memory, cached),
        cache=cache,
        launch=_launch(device),
        sort=_sort(device, slots),
        scatter=_scatter(device, slots),
    )


def _random(*shape: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, device=device, generator=torch.Generator(device).manual_seed(0)).to(dtype)


def _gemm(device: torch.device, name: str, least_ms: float) -> float:
    """FLOP/s of a square product, as large as it must be to take `least_ms`. Random numbers: zeros draw less power."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    try:
        rate = 0.0
        for n in (128, 256, 512, 1024, 2048, 4096, 8192):
            A = _random(n, n, device=device, dtype=torch.float32 if name == "tf32" else getattr(torch, name))
            ms = least(lambda A=A: torch.mm(A, A), device)
            rate = max(rate, 2e3 * n**3 / ms)
            if ms >= least_ms:
                break
        return rate
    finally:
        torch.set_float32_matmul_precision(before)


def _copy(device: torch.device, count: int) -> float:
    source = torch.ones(count, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2e3 * count / least(lambda: target.copy_(source), device)


def _rounding(count: int) -> float:
    """Seconds a number, from float32 to bfloat16."""
    source, device = torch.ones(count), torch.device("cpu")
    target = source.bfloat16()
    return 1e-3 * least(lambda: target.copy_(source), device) / count


def _gather(device: torch.device, bytes_of_matrix: int, scale: float) -> float:
    """Bytes/s of rows gathered at random by `spmm`, on the backend that is first in line."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    rows = max(K, bytes_of_matrix // (D * dtype.itemsize))
    n = max(1, int((16_384 if device.type == "cuda" else 1024) * scale))
    W = _random(rows, D, device=device, dtype=dtype)
    drawn = torch.Generator(device).manual_seed(1)
    indices = torch.randint(0, rows, (n, K), device=device, generator=drawn, dtype=torch.int32)
    values = indices.to(dtype)
    run = _first_in_line("spmm", values, indices, None, W)
    return 1e3 * n * K * D * dtype.itemsize / least(run, device)


def _first_in_line(op: str, *args: object) -> Callable[[], object]:
    """A call of an op on the backend of the highest priority among those that would run."""
    from .._kernel import explain

    first = next(each.backend for each in explain(op, (), args).candidates if each.reason is None)
    return lambda: getattr(torch.ops.sae_kernels, op)(*args, backend=first)


def _sort(device: torch.device, n: int) -> float:
    """Seconds a slot, ordered by latent."""
    m = 16_384
    indices = torch.randint(0, m, (n, K), device=device, generator=torch.Generator(device).manual_seed(3)).int()
    return 1e-3 * least(_first_in_line("transpose", indices, None, m), device) / (n * K)


def _launch(device: torch.device) -> float:
    """Seconds of a call that does nothing worth mentioning, in a row of them."""
    one = torch.zeros(1, device=device)
    return 1e-3 * least(lambda: one.add_(1), device)


def _scatter(device: torch.device, n: int) -> float:
    """Seconds a slot, written into a dense table and cleared again."""
    m = 2048
    indices = torch.randint(0, m, (n, K), device=device, generator=torch.Generator(device).manual_seed(2)).int()
    dense = table(Codes(indices.float(), indices, None, m), torch.float32, n * m, drop=True)

    def both() -> None:
        dense.fill(0, n, 0, m)
        dense.clear()

    return 1e-3 * least(both, device) / (2 * n * K)
