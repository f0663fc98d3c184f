"""The formats of this package, as a plugin."""

from __future__ import annotations

from ..hookspecs import hookimpl
from ..specs import Format


@hookimpl
def sae_kernels_formats() -> list[Format]:
    """The native one."""
    native = f"{__package__}.native"
    return [
        Format(
            "sae_kernels",
            "config.json + weights.safetensors, any architecture",
            f"{native}:matches",
            f"{native}:load",
            f"{native}:save",
        )
    ]
