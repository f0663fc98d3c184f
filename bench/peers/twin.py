"""A copy of a module that shares its weights."""

from __future__ import annotations

import copy
import itertools
from typing import TypeVar

from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def twin(module: Module) -> Module:
    """A copy whose parameters and buffers are the module's own: trained by one optimiser, one of the two patched."""
    shared = {id(tensor): tensor for tensor in itertools.chain(module.parameters(), module.buffers())}
    return copy.deepcopy(module, shared)
