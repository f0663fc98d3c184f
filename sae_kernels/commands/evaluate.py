"""`sae-kernels evaluate DIR`."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments."""
    parser.add_argument("directory", type=Path, help="a directory that `sae-kernels train` wrote")
    parser.add_argument("--tokens", type=int, default=100_000, help="held-out tokens to read (default: 100000)")
    parser.add_argument("--ablation", choices=("zero", "mean"), default="zero", help="what CE recovered compares with")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.epilog = "example:\n  sae-kernels evaluate runs/topk --tokens 50000"


def run(args: argparse.Namespace) -> None:
    """Evaluate, print the table, say where the JSON lies."""
    from ..evaluate import evaluate_run, table

    results = evaluate_run(args.directory, max_tokens=args.tokens, ablation=args.ablation, progress=not args.quiet)
    print(table(results))
    print(f"written to {args.directory / 'evaluation.json'}")
