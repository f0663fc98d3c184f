"""What the Triton kernels share. This file stays light: importing it does not import Triton.

A kernel is asked `why_not` before Triton is imported, so that a program on the CPU never pays for it.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ANYWHERE = {"adam_rows": 6}  # an argument that a kernel takes from the host too: the learning rates
_pretending = False


@functools.cache  # every op on the CPU asks
def interpreting() -> bool:
    """Kernels run in Triton's interpreter, on CPU tensors: TRITON_INTERPRET=1, set before the first kernel is used."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def pretend(on: bool) -> None:
    """Take CPU tensors for a GPU's: `ahead` compiles what would be launched on them, and launches nothing."""
    global _pretending
    _pretending = on
    importlib.import_module("sae_kernels.kernels._kernel").forget_decisions()


def pretending() -> bool:
    """`ahead` is compiling for another machine."""
    return _pretending


def on_gpu(tensor: Tensor) -> bool:
    """The tensor lies where the kernels run."""
    return tensor.is_cuda or (tensor.is_cpu and (interpreting() or _pretending))


def _tensors(args: Iterable[Any]) -> Iterable[Tensor]:
    for arg in args:
        if isinstance(arg, Tensor):
            yield arg
        elif isinstance(arg, (list, tuple)):
            yield from _tensors(arg)


def placed(*args: Any) -> str | None:
    """Why tensors among `args` (nested lists too) cannot be given to a kernel; None: they can."""
    here = None
    for tensor in _tensors(args):
        if not on_gpu(tensor):
            return f"device is {tensor.device.type} (needs cuda)"
        if tensor.layout is not torch.strided:
            return f"layout is {tensor.layout} (needs torch.strided)"
        if here is not None and tensor.device != here:
            return f"devices differ: {here} and {tensor.device}"
        here = tensor.device
    return None


def same_dtype(*tensors: Tensor | None) -> str | None:
    """Why these cannot be multiplied by a kernel: another dtype than float32, bfloat16, float16, or several."""
    given = [tensor.dtype for tensor in tensors if tensor is not None]
    for dtype in given:
        if dtype not in DTYPES:
            return f"dtype is {_name(dtype)} (needs float32, bfloat16 or float16)"
        if dtype != given[0]:
            return f"dtypes differ: {_name(given[0])} and {_name(dtype)}"
    return None


def declines(op: str) -> Callable[..., str | None]:
    """The `why_not` of an op's Triton kernel: where the tensors lie first, then what `<op>/triton.py` says itself."""
    may_be_anywhere = ANYWHERE.get(op)

    def why_not(*args: Any) -> str | None:
        if args[0].is_cpu and not (
            interpreting() or _pretending
        ):  # what `placed` would find: the usual case, in little time
            return "device is cpu (needs cuda)"
        reason = placed(*(arg for i, arg in enumerate(args) if i != may_be_anywhere))
        if reason is not None:
            return reason
        return importlib.import_module(f"sae_kernels.kernels.{op}.triton").why_not(*args)

    return why_not


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
