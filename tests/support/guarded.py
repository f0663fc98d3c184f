"""Tensors between two pages that nothing may touch: an access beyond them ends the process, masked loads included.

Memory inside a tensor's storage but outside its view holds poison, and is compared with what it was after a call.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

PAGE = mmap.PAGESIZE
INT_POISON = {torch.int32: 2**31 - 1, torch.int64: 2**62, torch.bool: 1, torch.uint8: 255}


def storage(count: int, dtype: torch.dtype, at_end: bool = True) -> Tensor:
    """`count` poisoned elements that end where a forbidden page begins (or begin where one ends)."""
    if count == 0:
        return torch.zeros(0, dtype=dtype)  # a null pointer
    size = count * dtype.itemsize
    pages = -(-size // PAGE)
    memory = mmap.mmap(-1, (pages + 2) * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for page in (0, pages + 1):
        if protect(start + page * PAGE, PAGE, 0) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")
    offset = PAGE + pages * PAGE - size if at_end else PAGE
    made = torch.frombuffer(memory, dtype=dtype, count=count, offset=offset)
    return made.fill_(INT_POISON.get(dtype, math.nan))


def placed(value: Tensor, strides: Sequence[int], offset: int, slack: int, at_end: bool) -> Tensor:
    """`value` at these strides, `offset` elements into a storage with `slack` more behind. Stride 0: expanded."""
    if value.numel() == 0:
        return value.new_empty(value.shape)
    count = offset + 1 + sum((size - 1) * stride for size, stride in zip(value.shape, strides, strict=True)) + slack
    kept = tuple(1 if stride == 0 else size for size, stride in zip(value.shape, strides, strict=True))
    view = storage(count, value.dtype, at_end).as_strided(kept, strides, offset)
    view.copy_(value[tuple(slice(size) for size in kept)])
    return view.expand(value.shape)


def strides_of(shape: Sequence[int], rng: random.Random, layouts: Sequence[str]) -> tuple[list[int], str]:
    """Strides of a random one of these layouts."""
    layout = rng.choice(layouts)
    strides, step = [0] * len(shape), rng.choice((2, 3)) if layout == "spread" else 1
    order = range(len(shape)) if layout == "columns" else reversed(range(len(shape)))
    for dim in order:
        strides[dim] = step
        step *= max(1, shape[dim])
        if layout in ("wide", "columns"):
            step += rng.choice((0, 1, 3, 16))
    if layout == "expanded" and shape:
        strides[rng.randrange(len(shape))] = 0
    return strides, layout


ALL = ("contiguous", "contiguous", "wide", "columns", "spread", "expanded", "negated")
EACH = tuple(layout for layout in ALL if layout != "expanded")
STRIDED = tuple(layout for layout in ALL if layout != "negated")  # torch itself half-writes negated mutable arguments
IN_PLACE = ("contiguous", "wide")


def lay(value: Tensor, rng: random.Random, layouts: Sequence[str] = ALL) -> Tensor:
    """`value` (negated: minus `value`) laid out at random between forbidden pages."""
    strides, layout = strides_of(value.shape, rng, layouts)
    tight = rng.random() < 0.5
    offset, slack = (0, 0) if tight else (rng.randrange(5), rng.randrange(5))
    view = placed(value, strides, offset, slack, rng.random() < 0.7)
    return torch._neg_view(view) if layout == "negated" and view.is_floating_point() else view


def bytes_of(tensor: Tensor) -> Tensor:
    """All bytes of the tensor's storage: what is beside the view, too."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())  # pyright: ignore[reportArgumentType]


_empty = torch.empty


def empty(*shape: Any, dtype: torch.dtype | None = None, **other: Any) -> Tensor:
    """In place of `torch.empty`, while kernels allocate their outputs and scratch."""
    sizes = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
    if other or any(size < 0 for size in sizes) or not 0 < math.prod(sizes) < 1 << 22:
        return _empty(*shape, dtype=dtype, **other)
    return storage(math.prod(sizes), dtype or torch.get_default_dtype()).view(tuple(sizes))
