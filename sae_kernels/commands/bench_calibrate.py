"""`sae-kernels bench calibrate`: measure what the choice between sparse and dense rests on, and keep it."""

from __future__ import annotations

import argparse
import datetime

import torch

from ..kernels._cost import calibrate, constants, model
from ..kernels._cost.constants import Constants
from .bench_sizes import DTYPES, current, device_of

ABOUT = "measure how fast this device multiplies, copies and gathers: what the choice between sparse and dense rests on"
EPILOG = """A few seconds on an otherwise idle machine. The result is kept in the cache directory (SAE_KERNELS_CACHE)
and used from then on by every process of yours; delete the file to go back to the built-in numbers.
docs/tuning.md says more.

example:
  sae-kernels bench calibrate --device cuda
  sae-kernels bench calibrate --device cuda --show    # what is in force, and from where"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of its own."""
    parser.add_argument("--show", action="store_true", help="measure nothing: print what is in force, and from where")


def lines(c: Constants, device: torch.device) -> list[str]:
    """The constants as a table, and what follows from them."""
    gpu = device.type == "cuda"
    rows = [
        (f"matrix product, {name}", f"{c.gemm[name] / 1e12:.3f} TFLOP/s") for name in c.gemm if gpu or name != "tf32"
    ]
    rows += [
        ("copy", f"{c.copy / 1e9:.1f} GB/s read and written"),
        ("random rows, from memory", f"{c.gather / 1e9:.1f} GB/s"),
        ("random rows, from the cache", f"{c.gather_cached / 1e9:.1f} GB/s"),
        ("cache", f"{c.cache / 2**20:.0f} MiB"),
        ("a launch" if gpu else "a call", f"{1e6 * c.launch:.1f} us"),
        ("a slot sorted by latent", f"{1e9 * c.sort:.3f} ns"),
        ("a slot into a dense table", f"{1e9 * c.scatter:.3f} ns"),
    ]
    out = [f"  {what:30}{value}" for what, value in rows]
    even = {name: model.break_even(c, name, dtype.itemsize) for name, dtype in DTYPES.items()}
    shown = ", ".join(f"{value:.0f} ({name})" if value > 1 else f"none ({name})" for name, value in even.items())
    return [*out, f"decode is estimated to be faster dense where d_sae / k is below: {shown}"]


def run(args: argparse.Namespace) -> None:
    """Measure, print, store."""
    device = device_of(args.device)
    name = constants.device_name(device)
    if args.show:
        found = constants.in_force(device)
        print(f"{name} ({device.type}): {found.source}")
        print("\n".join(lines(found.constants, device)))
        return
    print(f"measuring {name} ({device.type}), a few seconds", flush=True)
    with current(device):
        measured = calibrate.measure(device)
    print("\n".join(lines(measured, device)))
    print(f"stored in {constants.write(device, measured, datetime.date.today().isoformat())}")
