"""`sae-kernels info`: what one pastes into a bug report."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform

import torch

from .. import __version__, settings
from ..kernels import OPS
from ..kernels._kernel import candidates
from ..specs import resolve
from . import plugins as plugin_lines

PACKAGES = ("torch", "triton", "numpy", "pluggy", "safetensors", "transformers", "tokenizers", "tensorboard")


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments."""
    parser.epilog = "example:\n  sae-kernels info > report.txt"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def _isa() -> str:
    from ..kernels import _cpu

    if not _cpu.available():
        return f"none: {_cpu.why_not()}"
    return f"{_cpu.isa()} in use; this machine runs {', '.join(_cpu.isas())}"


def _gpu() -> str:
    if not torch.cuda.is_available():
        return "none that this PyTorch can use"
    kind = "HIP" if torch.version.hip else "CUDA"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{', '.join(names)} ({kind} {torch.version.hip or torch.version.cuda})"


def _measurements() -> str:
    """What the choice between sparse and dense rests on, for each device."""
    from ..kernels._cost.constants import in_force

    devices = [torch.device("cpu"), *(torch.device("cuda", i) for i in range(torch.cuda.device_count()))]
    return "; ".join(f"{device}: {in_force(device).source}" for device in devices)


def _backends() -> list[str]:
    """One line a backend: the ops it has, or why it can't be imported."""
    found: dict[str, list[str]] = {}
    reasons: dict[str, str] = {}
    for op in OPS:
        for kernel in candidates(op):
            try:
                resolve(kernel.run)
            except Exception as error:  # whatever an import can raise is the answer here
                reasons[kernel.backend] = f"{type(error).__name__}: {error}"
            else:
                found.setdefault(kernel.backend, []).append(op)
    lines = [f"{backend}: {len(ops)} of {len(OPS)} ops" for backend, ops in found.items()]
    return lines + [f"{backend}: some ops cannot be imported: {reason}" for backend, reason in reasons.items()]


def lines() -> list[str]:
    """The report."""
    out = [
        f"sae-kernels {__version__}   Python {platform.python_version()}   {platform.platform()}",
        "packages: " + "   ".join(f"{name} {_version(name)}" for name in PACKAGES),
        f"CPU: {_cpu_model()}, {os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads",
        f"instruction set: {_isa()}",
        f"GPU: {_gpu()}",
        f"cost model: {_measurements()}",
        "backends:",
        *(f"  {line}" for line in _backends()),
        "environment:",
        *(f"  {name}={settings.read(name) or '(not set)'}" for name in settings.VARIABLES),
        "plugins:",
        *(f"  {line}" for line in plugin_lines.lines()),
    ]
    return out


def run(args: argparse.Namespace) -> None:
    """Print it."""
    print("\n".join(lines()))
