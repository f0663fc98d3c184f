"""The kernels of this package, as a plugin: op × backend by dotted path, imported when first needed."""

from __future__ import annotations

from ..hookspecs import hookimpl
from ..specs import Kernel
from . import OPS, _triton

PRIORITIES = {"reference": 0, "cpu": 10}
TRITON = 20
DENSE = -10  # below the reference: it runs where its estimate says so
DENSE_OPS = ("spmm", "spmm_t", "sddmm", "spmm_backward")
ESTIMATES = f"{__package__}._cost.estimates"


def _kernel(op: str, backend: str, priority: int) -> Kernel:
    here = f"{__package__}.{op}.{backend}"
    why_not = _triton.declines(op) if backend == "triton" else f"{here}:why_not"
    estimate = None
    if op in DENSE_OPS and backend != "reference":
        kind = "dense" if backend == "dense" else "sparse"
        estimate = f"{ESTIMATES}:{kind}_{op}"
    return Kernel(op, backend, f"{here}:run", why_not, priority, estimate)


@hookimpl
def sae_kernels_kernels() -> list[Kernel]:
    """Every op on every built-in backend; `dense` for those that PyTorch's GEMM can do."""
    mine = [_kernel(op, backend, priority) for op in OPS for backend, priority in PRIORITIES.items()]
    mine += [_kernel(op, "triton", TRITON) for op in OPS]
    return mine + [_kernel(op, "dense", DENSE) for op in OPS if op in DENSE_OPS]
