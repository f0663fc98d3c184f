"""What this machine gives, measured in the run whose figures it judges: copy bandwidth, and GEMM of a dtype."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from bench.gpu.timing import Clock, interleaved


@dataclass(frozen=True)
class Roofline:
    """Bytes and floating-point operations a second."""

    copy: float  # bytes read and written by a large copy
    bfloat16: float
    float32: float  # without TF32, as torch's default has it

    def milliseconds(self, phases: list[tuple[float, float]], dtype: torch.dtype) -> float:
        """The least time of (flops, bytes) steps, each bound by one of the two."""
        peak = self.bfloat16 if dtype == torch.bfloat16 else self.float32
        return 1e3 * sum(max(flops / peak, moved / self.copy) for flops, moved in phases)

    def to_dict(self) -> dict[str, Any]:
        """As the results hold it."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"copy {self.copy / 1e12:.2f} TB/s, GEMM bfloat16 {self.bfloat16 / 1e12:.0f} TFLOP/s, "
            f"float32 {self.float32 / 1e12:.1f} TFLOP/s"
        )


def measured(clock: Clock, dry: bool) -> Roofline:
    """1 GiB copied, and 8192³ products of Gaussian numbers (zeros would flatter)."""
    size, side = (1 << 16, 64) if dry else (1 << 30, 8192)
    source = torch.empty(size, dtype=torch.uint8, device=clock.device)
    target = torch.empty_like(source)
    functions = {"copy": lambda: target.copy_(source)}
    for dtype in (torch.bfloat16, torch.float32):
        a, b = (torch.randn(side, side, device=clock.device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        functions[str(dtype)] = lambda a=a, b=b, out=out: torch.mm(a, b, out=out)
    times, errors = interleaved(functions, clock, seconds=0.05 if dry else 4)
    if errors:
        raise RuntimeError(f"no roofline: {errors}")
    flops = 2 * side**3
    return Roofline(
        2e3 * size / times["copy"].median,
        1e3 * flops / times[str(torch.bfloat16)].median,
        1e3 * flops / times[str(torch.float32)].median,
    )
