"""`sae-kernels bench [run | calibrate | warmup]`: time, and measure what the choice of kernels rests on."""

from __future__ import annotations

import argparse
from typing import Any

from . import bench_calibrate, bench_compare, bench_warmup
from .bench_sizes import SIZES, add_size, default_device

__all__ = ["SIZES", "configure", "run"]

EPILOG = """Without a mode it runs the comparison; each mode has its own --help.

example:
  sae-kernels bench --size S --dtype float32
  sae-kernels bench --shape 4096,768,24576,32 --device cuda --dtype bfloat16
  sae-kernels bench calibrate"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of the comparison, which is the default, and the other modes."""
    parser.epilog = EPILOG
    _comparison(parser)
    modes = parser.add_subparsers(dest="mode", metavar="MODE", title="modes")
    plain = argparse.RawDescriptionHelpFormatter
    kept = {"default": argparse.SUPPRESS}  # given before the mode, an option counts as well

    def mode(name: str, about: str, epilog: str, module: str) -> argparse.ArgumentParser:
        sub = modes.add_parser(name, help=about, description=about, epilog=epilog, formatter_class=plain)
        sub.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
        )
        sub.set_defaults(run=f"{__package__}.{module}:run")
        return sub

    example = "example:\n  sae-kernels bench run --size S"
    _comparison(mode("run", "time encode and decode against dense PyTorch", example, "bench_compare"), **kept)
    calibrate = mode("calibrate", bench_calibrate.ABOUT, bench_calibrate.EPILOG, "bench_calibrate")
    calibrate.add_argument("--device", default=default_device(), help="cpu, cuda, cuda:1, … (default: %(default)s)")
    bench_calibrate.configure(calibrate)
    warmup = mode("warmup", bench_warmup.ABOUT, bench_warmup.EPILOG, "bench_warmup")
    add_size(warmup, **kept)
    warmup.add_argument("--device", default=default_device(), help="cuda, cuda:1, … (default: %(default)s)")
    bench_warmup.configure(warmup)


def _comparison(parser: argparse.ArgumentParser, **change: Any) -> None:
    add_size(parser, **change)
    parser.add_argument("--device", help="cpu, cuda, … (default: cpu)", **{"default": "cpu", **change})
    parser.add_argument(
        "--rounds",
        type=int,
        help="interleaved rounds, of which the median is shown (default: 5)",
        **{"default": 5, **change},
    )


def run(args: argparse.Namespace) -> None:
    """The comparison: a mode brings its own `run`."""
    bench_compare.run(args)
