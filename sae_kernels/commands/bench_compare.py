"""`sae-kernels bench`, `sae-kernels bench run`: encode and decode against dense PyTorch, results checked first."""

from __future__ import annotations

import argparse

import torch

from ..errors import ArgumentError
from ..measure import against_torch, table
from ..ops import TopK, explain
from .bench_sizes import DTYPES, device_of, shape_of


def run(args: argparse.Namespace) -> None:
    """Time and print."""
    if args.rounds < 1:
        raise ArgumentError(f"--rounds {args.rounds}, expected at least 1")
    n, d, m, k = shape_of(args)
    dtype, device = DTYPES[args.dtype], device_of(args.device)
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
