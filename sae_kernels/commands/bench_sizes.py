"""The arguments that the modes of `sae-kernels bench` share: sizes, dtype, device."""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

import torch

from ..errors import ArgumentError, DeviceError

SIZES = {
    "small": (1024, 256, 8192, 32),
    "S": (4096, 768, 24_576, 32),
    "L": (2048, 2304, 65_536, 64),
    "XL": (256, 1024, 1_048_576, 64),
    "A": (8192, 2304, 65_536, 64),
    "B": (16_384, 4096, 131_072, 64),
    "C": (4096, 768, 16_384, 32),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def add_size(parser: argparse.ArgumentParser, **change: Any) -> None:
    """--size, --shape and --dtype; `change` goes to each of them (another default, say)."""
    sizes = "; ".join(f"{name}: N={n} d={d} d_sae={m} k={k}" for name, (n, d, m, k) in SIZES.items())
    parser.add_argument("--size", choices=SIZES, help=sizes, **{"default": "small", **change})
    parser.add_argument(
        "--shape", type=_shape, metavar="N,d,d_sae,k", help="your own: tokens, width, latents, active ones", **change
    )
    parser.add_argument("--dtype", choices=DTYPES, **{"default": "float32", **change})


def _shape(text: str) -> tuple[int, int, int, int]:
    try:
        n, d, m, k = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not N,d,d_sae,k (4096,768,24576,32, say)") from None
    if not (n > 0 and d > 0 and 0 < k <= m):
        raise argparse.ArgumentTypeError(f"{text!r}: expected positive sizes and k <= d_sae")
    return n, d, m, k


def shape_of(args: argparse.Namespace) -> tuple[int, int, int, int]:
    """(N, d, d_sae, k) that were asked for."""
    return args.shape or SIZES[args.size]


def default_device() -> str:
    """The GPU, where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def current(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Make it the device that is timed, and whose name counts."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def device_of(name: str) -> torch.device:
    """The device of that name.

    Raises:
        ArgumentError: no device is called that. DeviceError: there is none here.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ArgumentError(f"--device {name}: {str(error).splitlines()[0]}") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise DeviceError(f"--device {name}: there is no GPU that this PyTorch can use")
        return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
    return device
