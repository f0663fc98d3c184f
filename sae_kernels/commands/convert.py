"""`sae-kernels convert IN OUT`."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments."""
    parser.add_argument(
        "source", metavar="IN", help="a file or folder of a coder, or hf:owner/name[/folder][@revision]"
    )
    parser.add_argument("target", metavar="OUT", type=Path, help="where to write; what is there is replaced")
    parser.add_argument("--format", default="sae_kernels", help="format to write (default: sae_kernels)")
    parser.add_argument("--from", dest="source_format", help="format to read (default: recognised)")
    parser.epilog = (
        "example:\n  sae-kernels convert runs/topk/coder exported --format sae_lens\n"
        "  sae-kernels convert hf:EleutherAI/sae-pythia-70m-32k/layers.3 layer3\n"
        "what a format cannot hold is an error; docs/formats.md has the table"
    )


def run(args: argparse.Namespace) -> None:
    """Read, write, say what was written."""
    from ..formats import load, save

    coder = load(args.source, format=args.source_format)
    save(coder, args.target, format=args.format)
    size = f"d_in {coder.d_in}, d_sae {coder.d_sae}"
    print(f"{args.source} → {args.target}: {coder.architecture}, {size}, as {args.format}")
