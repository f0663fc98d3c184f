"""`sae-kernels train CONFIG`."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments."""
    parser.add_argument("config", type=Path, help="TOML file; docs/training.md lists every key")
    parser.add_argument(
        "--restart", action="store_true", help="start over instead of resuming from the last checkpoint"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.epilog = "example:\n  sae-kernels train topk.toml      # run it again after a crash: it resumes exactly"


def run(args: argparse.Namespace) -> int:
    """Train, then say where the result lies."""
    from ..train import load_config, train

    outcome = train(load_config(args.config), resume=not args.restart, progress=not args.quiet)
    if outcome.outcome == "interrupted":
        print(f"interrupted at step {outcome.step} of {outcome.total_steps}; the same command goes on from there")
        return 130
    print(f"trained to step {outcome.step}: {outcome.directory / 'coder'}")
    return 0
