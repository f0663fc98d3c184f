"""`sae-kernels train CONFIG`."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments."""
    parser.add_argument("config", type=Path, help="TOML file, or a run's config.json; docs/training.md lists every key")
    parser.add_argument(
        "--restart", action="store_true", help="start over instead of resuming from the last checkpoint"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.epilog = "example:\n  sae-kernels train topk.toml      # run it again after a crash: it resumes exactly"


def run(args: argparse.Namespace) -> int:
    """Train, then say where the result lies."""
    from ..train import load_sweep, train_together

    runs = train_together(load_sweep(args.config), resume=not args.restart, progress=not args.quiet)
    for each in runs:
        if each.outcome == "finished":
            print(f"trained to step {each.step}: {each.directory / 'coder'}")
        else:
            print(f"{each.outcome} at step {each.step} of {each.total_steps}: {each.directory}")
    if any(each.outcome == "interrupted" for each in runs):
        print("the same command goes on from there")
        return 130
    return 0
