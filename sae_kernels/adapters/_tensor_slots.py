"""The first tensor in a module's arguments or output, and how to swap it and keep what surrounds it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

WHOLE = object()  # the slot of an output that is itself the tensor


def first_input(args: tuple[Any, ...], kwargs: Mapping[str, Any], order: Sequence[str]) -> int | str | None:
    """Position or keyword of the first tensor, in the order of forward's parameters; None without one."""
    for i, value in enumerate(args):
        if isinstance(value, Tensor):
            return i
    named = [key for key, value in kwargs.items() if isinstance(value, Tensor)]
    rank = {name: i for i, name in enumerate(order)}
    return min(named, key=lambda name: rank.get(name, len(rank)), default=None)


def get_input(args: tuple[Any, ...], kwargs: Mapping[str, Any], slot: int | str) -> Tensor:
    """The tensor in a slot that `first_input` found."""
    return args[slot] if isinstance(slot, int) else kwargs[slot]


def set_input(
    args: tuple[Any, ...], kwargs: dict[str, Any], slot: int | str, new: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments with the slot's tensor replaced."""
    if isinstance(slot, int):
        return (*args[:slot], new, *args[slot + 1 :]), kwargs
    return args, {**kwargs, slot: new}


def first_output(output: Any) -> Any:
    """Key of the first tensor in a mapping or sequence (top level), WHOLE for a tensor, None without one."""
    if isinstance(output, Tensor):
        return WHOLE
    if isinstance(output, Mapping):  # ModelOutput too
        items = output.items()
    elif isinstance(output, (tuple, list)):
        items = enumerate(output)
    else:
        return None
    return next((key for key, value in items if isinstance(value, Tensor)), None)


def get_output(output: Any, slot: Any) -> Tensor:
    """The tensor in a slot that `first_output` found."""
    return output if slot is WHOLE else output[slot]


def set_output(output: Any, slot: Any, new: Tensor) -> Any:
    """An output of the same type with the slot's tensor replaced; the original is left as it was."""
    if slot is WHOLE:
        return new
    if isinstance(output, tuple):
        items = (*output[:slot], new, *output[slot + 1 :])
        return type(output)(*items) if hasattr(output, "_fields") else items
    changed = copy.copy(output)
    changed[slot] = new
    return changed
