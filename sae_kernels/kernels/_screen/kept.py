"""Copies of weights in fewer bits, kept while the weights stay what they are.

Weights in training change at every step: they are rounded chunk by chunk as they are read. Weights that come back
unchanged are worth a copy: half as much to read, and nothing to round. One is made when the same content is met for
the second time. What tells that it is the same:

- the storage, held weakly, which also keeps its address from being reused; where in it the weights lie, and how;
- the version counter, which PyTorch's operations and this package's move on when they write;
- the steps that optimizers have made, since fused ones of PyTorch write without moving the counter on;
- for what writes behind all of these (`W.data[i] = ...`): 16 elements of every row, others at each call, are
  compared with the copy before it is used. A single element written that way can escape for a while.

Few tokens would spend as long on that comparison as on the encode. They compare one row in 16, others at each call:
a change to all rows is seen at once, and one row written that way may escape for 15 calls. No longer than until the
copy makes it a candidate, though: then its exact score contradicts what the copy says of it, the copy is freed, and
the encode made without it (csrc/few).

SAE_KERNELS_SCREEN_CACHE bounds all copies together (bytes; 0: none); the one unused longest goes first.
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim.optimizer import register_optimizer_step_post_hook

from ... import settings
from ...errors import ConfigError
from .. import _cpu
from .rounded import Rounded, round_rows

REMEMBERED = 64  # tensors met, with or without a copy


@dataclass
class _Met:
    """A tensor that was met: alive as long as its storage is."""

    storage: StorageWeakRef
    state: tuple[int, int]  # version, optimizer steps
    copy: Any = None  # has nbytes
    calls: int = 0


_lock = threading.Lock()
_met: OrderedDict[tuple[Any, ...], _Met] = OrderedDict()
_steps = 0
counts = {"made": 0, "used": 0, "stale": 0}


def forget() -> None:
    """Free every copy."""
    with _lock:
        _met.clear()


def kept_bytes() -> int:
    """What the copies take."""
    return sum(met.copy.nbytes for met in list(_met.values()) if met.copy)


def limit_bytes() -> int:
    """SAE_KERNELS_SCREEN_CACHE."""
    text = settings.read("SAE_KERNELS_SCREEN_CACHE") or settings.VARIABLES["SAE_KERNELS_SCREEN_CACHE"].default
    if not text.isdecimal():
        raise ConfigError(f"SAE_KERNELS_SCREEN_CACHE={text}, expected a number of bytes")
    return int(text)


def kept(W: Tensor, rows_a_look: int = 1) -> Rounded | None:
    """The copy of these very weights in bfloat16; None where there is none. Weights in bfloat16 need none.

    One row in `rows_a_look` is compared with the copy."""

    def make() -> Rounded:
        return round_rows(W.detach(), Rounded.empty(W.shape[0], W.shape[1], W.dtype))

    def same(copy: Rounded, calls: int) -> bool:
        return _same(W, copy, calls, rows_a_look)

    if W.dtype == torch.bfloat16:
        return None
    return keep(W, "bfloat16", 2 * W.numel() + 8 * W.shape[0], make, same)


def has(W: Tensor, kind: str = "bfloat16") -> bool:
    """Whether `keep` would find a copy of that kind; asking does not count as meeting these weights."""
    if W.is_inference():
        return False
    with _lock:
        met = _met.get(_key(W, kind)[1])
        return met is not None and met.copy is not None and met.state == (W._version, _steps)


def keep(W: Tensor, kind: str, wanted: int, make: Callable[[], Any], same: Callable[[Any, int], bool]) -> Any:
    """The copy of these very weights, of a kind that takes `wanted` bytes; None where there is none.

    `make()` makes one. `same(copy, calls)` compares a sample of the weights with it, another one at each call."""
    limit = limit_bytes()
    if W.is_inference() or wanted > limit:
        return None
    _watch_optimizers()
    storage, key = _key(W, kind)
    with _lock:
        for gone in [key for key, met in _met.items() if met.storage.expired()]:
            del _met[gone]
        state = W._version, _steps
        met = _met.get(key)
        if met is None or met.state != state:
            _met[key] = _Met(storage, state)
            _met.move_to_end(key)
            if len(_met) > REMEMBERED:
                _met.popitem(last=False)
            return None
        _met.move_to_end(key)
        met.calls += 1
        if met.copy is not None and not same(met.copy, met.calls):
            met.copy = None
            counts["stale"] += 1
        if met.copy is not None:
            counts["used"] += 1
            return met.copy
        _make_room(limit - wanted)
        met.copy = make()
        counts["made"] += 1
        return met.copy


def _make_room(most: int) -> None:
    """Free copies, the one unused longest first, until they take no more than that."""
    for met in _met.values():
        if kept_bytes() <= most:
            return
        met.copy = None


def _same(W: Tensor, copy: Rounded, calls: int, rows_a_look: int) -> bool:
    """Whether a sample of the rows is still what was rounded."""
    turn, row = divmod(calls, rows_a_look)
    at = 16 * turn % max(1, W.shape[1] - 15)
    a = (_cpu.dtype_code(W), *_cpu.pointers(W), copy.data.data_ptr())
    return not _cpu.tell("screen_differs", *a, row, rows_a_look, at)


def contradicted(W: Tensor, kind: str = "bfloat16") -> None:
    """Free the copy of these weights: it is not what they are."""
    with _lock:
        met = _met.get(_key(W, kind)[1])
        if met is not None and met.copy is not None:
            met.copy = None
            counts["stale"] += 1


def _key(W: Tensor, kind: str) -> tuple[StorageWeakRef, tuple[Any, ...]]:
    storage = StorageWeakRef(W.untyped_storage())
    return storage, (storage.cdata, W.storage_offset(), W.shape, W.stride(), W.dtype, kind)


@functools.cache
def _watch_optimizers() -> None:
    register_optimizer_step_post_hook(_stepped)


def _stepped(*_: Any) -> None:
    global _steps
    _steps += 1
