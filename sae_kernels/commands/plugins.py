"""`sae-kernels plugins`."""

from __future__ import annotations

import argparse

from .. import registry
from ..plugins import plugins

KINDS = {
    "sae_kernels_kernels": registry.kernels,
    "sae_kernels_architectures": registry.architectures,
    "sae_kernels_adapters": registry.adapters,
    "sae_kernels_formats": registry.formats,
    "sae_kernels_patches": registry.patches,
    "sae_kernels_metrics": registry.metrics,
    "sae_kernels_commands": registry.commands,
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments."""
    parser.epilog = "example:\n  SAE_KERNELS_BLOCK=tensorboard sae-kernels plugins"


def lines() -> list[str]:
    """One block a plugin: name, status, source; what it registers, or its error."""
    provided: dict[str, list[str]] = {}
    for kind in KINDS.values():  # asking every registry also finds the hooks that raise
        for name in kind.names():
            for owner in kind.owners(name):
                provided.setdefault(owner, []).append(f"{kind.kind} {name}")
    out = []
    for info in plugins().infos.values():
        out.append(f"{info.name}  [{info.status}]  {info.source}")
        if info.error:
            out.append(f"    error: {info.error}")
        if info.name in provided:
            out.append(f"    {_grouped(provided[info.name])}")
        elif info.hooks:
            out.append(f"    hooks: {', '.join(info.hooks)}")
    for kind in KINDS.values():
        for name in kind.contested():
            out.append(f"contested: {kind.kind} {name!r} is claimed by {' and '.join(kind.owners(name))}")
    return out


def _grouped(provided: list[str]) -> str:
    """`kernel spmm/cpu, spmm/reference; format sae_kernels`."""
    groups: dict[str, list[str]] = {}
    for each in provided:
        kind, name = each.split(" ", 1)
        groups.setdefault(kind, []).append(name)
    return "; ".join(f"{kind} {', '.join(names)}" for kind, names in groups.items())


def run(args: argparse.Namespace) -> None:
    """Print them."""
    print("\n".join(lines()))
