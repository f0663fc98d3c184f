"""Codes by latent, sorted once for everything in a backward pass that needs them so.

In one pass dW_dec, dW_enc and db_enc all sort the same `indices`. A sort is kept for the rest of the pass it was made
in: 16 bytes a slot and the indices themselves, at most one sort for each stream, gone when the pass ends (where it
fails, when the next one sorts).

It is found again only if every bit that went into it must be the same: the pass, the storage (kept alive, so that its
address cannot come to mean another), place, shape, strides and version of indices and offsets, and d_sae. Versions do
not tell of writes that PyTorch knows nothing of, such as those of a compiled graph that uses its buffers again. So a
sort is shared only among the gradient formulas of this package, run eagerly: never outside a backward pass, in a
compiled graph or while a CUDA graph is captured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._kernel import NAMESPACE
from ..transpose import triton as transpose
from .inputs import Codes

# How the node of an op's gradient formula is named: by `Op` itself, and by torch.library.
_FORMULAS = NAMESPACE, f"GeneratedBackwardFor_{NAMESPACE}"


@dataclass(frozen=True)
class _Kept:
    backward: int
    key: tuple[Any, ...]
    sources: tuple[Tensor, Tensor | None]
    made: transpose.ByLatent


_kept: dict[tuple[torch.device, int], _Kept] = {}  # one for each stream


def clear() -> None:
    """Forget everything."""
    _kept.clear()


def backward_pass() -> int | None:
    """A number for the backward pass in which one of the package's gradient formulas is running; None: none is."""
    node = getattr(torch._C, "_current_autograd_node", lambda: None)()
    if node is None or not node.name().startswith(_FORMULAS):
        return None
    number = getattr(torch._C, "_current_graph_task_id", lambda: -1)()
    return None if number < 0 else number


def sort(indices: Tensor, offsets: Tensor | None, codes: Codes) -> transpose.ByLatent:
    """`codes`, made of these indices and offsets, by latent."""
    backward = backward_pass()
    if backward is None or not _can_be_told_apart(indices, offsets):
        return transpose.by_latent(codes)
    device = indices.device
    place = device, torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    key = (backward, codes.d_sae, *_identity(indices), *_identity(offsets))
    kept = _kept.get(place)
    if kept is not None and kept.key == key:
        return kept.made
    made = transpose.by_latent(codes)
    _kept[place] = _Kept(backward, key, (indices, offsets), made)
    if kept is None or kept.backward != backward:
        torch.autograd.Variable._execution_engine.queue_callback(lambda: _forget(place, backward))
    return made


def _forget(place: tuple[torch.device, int], backward: int) -> None:
    kept = _kept.get(place)
    if kept is not None and kept.backward == backward:
        del _kept[place]


def _can_be_told_apart(*tensors: Tensor | None) -> bool:
    if any(tensor is not None and tensor.is_inference() for tensor in tensors):  # these have no version
        return False
    return not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())


def _identity(tensor: Tensor | None) -> tuple[Any, ...]:
    if tensor is None:
        return (None,)
    storage = tensor.untyped_storage()._cdata
    return storage, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor._version
