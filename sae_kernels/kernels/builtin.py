"""The kernels of this package, as a plugin: op × backend by dotted path, imported when first needed."""

from __future__ import annotations

from ..hookspecs import hookimpl
from ..specs import Kernel
from . import OPS, _triton
from ._screen.integers import PROBABILITY

PRIORITIES = {"reference": 0, "cpu": 10}
TRITON = 20
DENSE = -10  # below the reference: it runs where its estimate says so
INT8 = -20  # only by name
OF_ONE_KIND = ("topk", "linear_topk", "linear_threshold", "linear_batch_topk", "spmm", "prefix_decode")
SCREENED = ("linear_topk", "linear_threshold", "linear_batch_topk")
DENSE_OPS = ("spmm", "spmm_t", "sddmm", "spmm_backward")
ESTIMATES = f"{__package__}._cost.estimates"


def _kernel(op: str, backend: str, priority: int) -> Kernel:
    here = f"{__package__}.{op}.{backend}"
    why_not = _triton.declines(op) if backend == "triton" else f"{here}:why_not"
    estimate = None
    if op in DENSE_OPS and backend != "reference":
        kind = "dense" if backend == "dense" else "sparse"
        estimate = f"{ESTIMATES}:{kind}_{op}"
    by_kind = not _triton.interpreting() if backend == "triton" else backend == "cpu" and op in OF_ONE_KIND
    how = f"{here}:how" if backend == "cpu" and op in SCREENED else None
    return Kernel(op, backend, f"{here}:run", why_not, priority, estimate, by_kind=by_kind, how=how)


@hookimpl
def sae_kernels_kernels() -> list[Kernel]:
    """Every op on every built-in backend; `dense` for those that PyTorch's GEMM can do."""
    mine = [_kernel(op, backend, priority) for op in OPS for backend, priority in PRIORITIES.items()]
    mine += [_kernel(op, "triton", TRITON) for op in OPS]
    mine += [_kernel(op, "dense", DENSE) for op in OPS if op in DENSE_OPS]
    here = f"{__package__}.linear_topk.cpu_int8"
    terms = f"encode(screening='int8'), {PROBABILITY}"
    return [*mine, Kernel("linear_topk", "cpu_int8", f"{here}:run", f"{here}:why_not", INT8, by_name=terms)]
