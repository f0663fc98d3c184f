"""Weights that lie in memory by latents while their module is patched: a latent's row in one piece, as kernels read it.

Strides change, nothing else: shapes, values and the parameter objects stay. Gradients follow the weight, and so does
what a fused optimiser remembers of it: torch's reads both as if they lay alike, and gives wrong weights where they do
not.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook


class Place(NamedTuple):
    """A weight of a module, and its strides where it lies by latents."""

    module: nn.Module
    name: str
    strides: tuple[int, ...]

    @property
    def weight(self) -> nn.Parameter:
        """As it is now: a loaded one may be another object."""
        return getattr(self.module, self.name)


def lay(places: Sequence[Place]) -> Callable[[], None]:
    """Put weights there, all of them or, where somebody else may look at the same memory, none; → what puts those back
    that may be moved still, and have the shape they had."""
    if not _movable(places):
        return lambda: None
    _watch_optimizers()
    before = [(weakref.ref(p.module), p.name, p.weight.shape, p.weight.stride()) for p in places]
    _move(places)

    def lay_back() -> None:
        back = [
            Place(there, name, strides)
            for module, name, shape, strides in before
            if (there := module()) is not None and getattr(there, name).shape == shape
        ]
        if _movable(back):
            _move(back)

    return lay_back


def _move(places: Sequence[Place]) -> None:
    """Each weight, and its gradient."""
    for place in places:
        for tensor in (place.weight, place.weight.grad):
            if tensor is not None and tensor.stride() != place.strides:
                with torch.inference_mode(tensor.is_inference()):  # what is made in that mode would stay so
                    tensor.data = _laid(tensor.data, place.strides)


def _laid(tensor: Tensor, strides: tuple[int, ...]) -> Tensor:
    new = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device)
    return new.copy_(tensor)


@functools.cache
def _watch_optimizers() -> None:
    """From now on, before each step of any."""
    register_optimizer_step_pre_hook(_follow)


def _follow(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """A fused optimiser's gradients, and what it remembers, lie in memory as the weights do."""
    for group in optimizer.param_groups:
        for weight in group["params"] if group.get("fused") else ():
            if weight.dim() != 2 or not (weight.is_contiguous() or weight.mT.is_contiguous()):
                continue
            if weight.grad is not None and _lies_otherwise(weight.grad, weight):
                weight.grad = _laid(weight.grad, weight.stride())
            state = optimizer.state.get(weight, {})
            for name, value in state.items():
                if isinstance(value, Tensor) and _lies_otherwise(value, weight):
                    state[name] = _laid(value, weight.stride())


def _lies_otherwise(tensor: Tensor, weight: Tensor) -> bool:
    strided = tensor.layout is torch.strided
    return strided and tensor.shape == weight.shape and tensor.stride() != weight.stride()


def _movable(places: Sequence[Place]) -> bool:
    return all(_own(place.weight) for place in places) and not _tied(places)


def _own(weight: Tensor) -> bool:
    """No other weight lies in its memory, and no other process looks: it may be moved. (Whoever holds its `.data` keeps
    what it was.)"""
    whole = type(weight) is nn.Parameter and weight.untyped_storage().nbytes() == weight.numel() * weight.itemsize
    return whole and not (weight.is_cpu and weight.is_shared())


def _tied(places: Sequence[Place]) -> bool:
    """Another parameter of these modules lies where one of the weights does."""
    parameters = {id(each): each for place in places for each in place.module.parameters()}
    parameters |= {id(place.weight): place.weight for place in places}
    memory = [each.untyped_storage().data_ptr() for each in parameters.values()]
    mine = [place.weight.untyped_storage().data_ptr() for place in places]
    return any(at != 0 and memory.count(at) > 1 for at in mine)
