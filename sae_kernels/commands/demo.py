"""`sae-kernels demo`."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments."""
    parser.add_argument(
        "--dir", type=Path, default=Path("runs/demo"), help="where everything is written (default: runs/demo)"
    )
    parser.add_argument("--tokens", type=int, default=500_000, help="tokens each coder trains on (default: 500000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--keep", action="store_true", help="continue an earlier demo in --dir instead of starting over"
    )
    parser.epilog = "example:\n  sae-kernels demo --tokens 1000000 --dir runs/longer"


def run(args: argparse.Namespace) -> None:
    """Run it."""
    from ..demo.job import run as run_demo
    from ..errors import ArgumentError

    if args.tokens < 10_000:
        raise ArgumentError(f"--tokens {args.tokens}, expected at least 10000")
    run_demo(args.dir, args.tokens, args.seed, resume=args.keep)
