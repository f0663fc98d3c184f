"""`timed`: a backend for `spmm` written in C++ with pybind11, which also keeps how long each call took."""

from __future__ import annotations

import torch
from torch import Tensor

import sae_kernels as sk
from sae_kernels.kernels.native import kernels_capsule
from sae_kernels.specs import Kernel

from . import _native

_native.connect(kernels_capsule())
seconds: list[float] = []


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def why_not(values: Tensor, indices: Tensor, offsets: Tensor | None, W: Tensor) -> str | None:
    """float32 on the CPU, contiguous."""
    if not W.is_cpu or W.dtype != torch.float32:
        return f"W is {W.dtype} on {W.device.type} (needs float32 on cpu)"
    if not all(t.is_contiguous() for t in (values, indices, offsets, W) if t is not None):
        return "needs contiguous tensors"
    return None


def run(values: Tensor, indices: Tensor, offsets: Tensor | None, W: Tensor) -> Tensor:
    """out[n] = Σ_j values[n, j] · W[indices[n, j]]."""
    n, k = (values.shape[0], values.shape[1]) if offsets is None else (offsets.shape[0] - 1, 0)
    out = torch.empty(n, W.shape[1])
    addresses = _address(values), _address(indices), _address(offsets)
    sizes = n, k, values.numel()
    threads = torch.get_num_threads()
    seconds.append(_native.spmm(*addresses, *sizes, _address(W), *W.shape, _address(out), threads))
    return out


@sk.hookimpl
def sae_kernels_kernels() -> list[Kernel]:
    """Chosen only by name: `with sk.use("timed")`, or `sk.decode(…, backend="timed")`."""
    return [Kernel("spmm", "timed", run, why_not, priority=-1)]
