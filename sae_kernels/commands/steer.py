"""`sae-kernels steer DIR`."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

HELP = {
    "add": ("LATENT=STRENGTH", "add STRENGTH to the latent's activation"),
    "clamp": ("LATENT=VALUE", "set it to VALUE, also where it is not active"),
    "scale": ("LATENT=FACTOR", "multiply it by FACTOR, where it is active"),
    "ablate": ("LATENT", "set it to 0"),
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments."""
    parser.add_argument("directory", type=Path, help="directory that `sae-kernels train` wrote")
    parser.add_argument("--prompt", required=True, help="text to continue")
    for name, (form, meaning) in HELP.items():
        parser.add_argument(
            f"--{name}", metavar=form, dest="edits", action="append", type=_edit(name), help=f"{meaning} (repeatable)"
        )
    parser.add_argument("--tokens", type=int, default=40, help="tokens to generate (default: 40)")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling (default: 0)")
    parser.add_argument("--temperature", type=float, default=1.0, help="0: always the likeliest token (default: 1)")
    parser.epilog = (
        "Edits of one latent apply in the order given. A latent of a crosscoder or cross-layer transcoder is edited\n"
        'in all its layers.\n\nexample:\n  sae-kernels steer runs/topk --prompt "import os" --clamp 17=40 --ablate 3'
    )


def _edit(name: str) -> Callable[[str], tuple[str, int, float | None]]:
    form = HELP[name][0]

    def parse(text: str) -> tuple[str, int, float | None]:
        latent, equals, number = text.partition("=")
        try:
            if bool(equals) != ("=" in form):
                raise ValueError
            return name, int(latent), float(number) if equals else None
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r}, expected {form}") from None

    return parse


def run(args: argparse.Namespace) -> None:
    """Generate twice, show both."""
    from ..errors import ArgumentError
    from ..steer import Ablate, Add, Clamp, Scale
    from ..steer.run import steer_run

    kinds: dict[str, Any] = {"add": Add, "clamp": Clamp, "scale": Scale, "ablate": Ablate}
    if not args.edits:
        raise ArgumentError(f"no edit, expected one of {', '.join(f'--{name}' for name in HELP)}")
    edits = [kinds[name](latent) if value is None else kinds[name](latent, value) for name, latent, value in args.edits]
    texts = steer_run(
        args.directory, edits, args.prompt, n_tokens=args.tokens, seed=args.seed, temperature=args.temperature
    )
    for label, text in (("without", texts.plain), ("with", texts.steered)):
        print(f"{label}:\n{textwrap.indent(args.prompt + text, '  ')}")
