"""`sae-kernels bench`: a quick comparison with dense PyTorch, results checked first."""

from __future__ import annotations

import argparse

import torch

from ..errors import ArgumentError
from ..measure import against_torch, table
from ..ops import TopK, explain

SIZES = {
    "small": (1024, 256, 8192, 32),
    "S": (4096, 768, 24_576, 32),
    "L": (2048, 2304, 65_536, 64),
    "XL": (256, 1024, 1_048_576, 64),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments."""
    sizes = "; ".join(f"{name}: N={n} d={d} d_sae={m} k={k}" for name, (n, d, m, k) in SIZES.items())
    parser.add_argument("--size", choices=SIZES, default="small", help=sizes)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, … (default: cpu)")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds, of which the median is shown")
    parser.epilog = "example:\n  sae-kernels bench --size S --dtype float32"


def run(args: argparse.Namespace) -> None:
    """Time and print."""
    if args.rounds < 1:
        raise ArgumentError(f"--rounds {args.rounds}, expected at least 1")
    n, d, m, k = SIZES[args.size]
    dtype, device = DTYPES[args.dtype], args.device
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).mul_(scale).to(device, dtype)

    x, W_enc, W_dec = normal(n, d), normal(m, d, scale=d**-0.5), normal(m, d, scale=d**-0.5)
    b_enc, b_dec = normal(m, scale=0.1), normal(d, scale=0.1)
    print(explain("encode", x, W_enc, b_enc, TopK(k)))
    print(
        f"\nN {n}  d {d}  d_sae {m}  k {k}  {args.dtype}  {torch.get_num_threads()} threads, "
        f"medians of {args.rounds} rounds"
    )
    print(table(against_torch(x, W_enc, b_enc, W_dec, b_dec, k, args.rounds)))
