"""`sae-kernels cache CONFIG DIR`."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments."""
    parser.add_argument("config", type=Path, help="TOML file with an [activations] table, as `train` takes it")
    parser.add_argument("directory", type=Path, help="folder of the cache; an unfinished one is gone on with")
    parser.add_argument("--tokens", type=_count, required=True, help="tokens to write: 5000000, 5M, 2.5G")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16", help="on disk")
    parser.add_argument("--shard-size", type=_count, default=1 << 29, help="bytes in a shard (default: 512 MiB)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be written, and stop")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.epilog = (
        "example:\n"
        "  sae-kernels cache run.toml activations --tokens 10M\n"
        '  then train with   [activations] adapter = "tensors", path = "activations"'
    )


def run(args: argparse.Namespace) -> None:
    """Say how large it gets, write it, say what is there."""
    from ..train.activation_cache import load_activations, plan, size, write

    table = load_activations(args.config)
    source = table.open()
    planned = plan(table, source, args.directory, args.tokens, dtype=args.dtype, shard_bytes=args.shard_size)
    print(planned)
    if args.dry_run:
        return
    made = write(planned, source, progress=not args.quiet)
    if made.rows < args.tokens:
        print(f"the source ended after {made.rows:,} tokens")
    print(f"{made.rows:,} tokens, {size(made.rows * made.row_bytes)} in {len(made.shards)} shards: {args.directory}")


def _count(text: str) -> int:
    """A positive number, with k, M, G or T for thousands."""
    factors = {"k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
    factor = factors.get(text[-1:], 1)
    try:
        number = float(text[:-1] if factor > 1 else text.replace("_", "")) * factor
    except ValueError:
        number = 0.0
    if not (number >= 1 and number == int(number)):
        raise argparse.ArgumentTypeError(f"{text!r}, expected a number of at least 1: 5000000, 5M, 2.5G")
    return int(number)
