"""The kernels of this package, as a plugin: op × backend by dotted path, imported when first needed."""

from __future__ import annotations

from ..hookspecs import hookimpl
from ..specs import Kernel
from . import OPS, _triton

PRIORITIES = {"reference": 0, "cpu": 10}
TRITON = 20


@hookimpl
def sae_kernels_kernels() -> list[Kernel]:
    """Every op on every built-in backend."""
    mine = [
        Kernel(op, backend, f"{__package__}.{op}.{backend}:run", f"{__package__}.{op}.{backend}:why_not", priority)
        for op in OPS
        for backend, priority in PRIORITIES.items()
    ]
    return mine + [Kernel(op, "triton", f"{__package__}.{op}.triton:run", _triton.declines(op), TRITON) for op in OPS]
