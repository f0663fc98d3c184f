"""`screening=`: how `encode` may choose what to compute exactly, where that has to be asked for by name."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from .. import settings
from ..errors import ArgumentError, unknown
from ..kernels._screen.policy import mode
from .selections import TopK

BACKENDS = {"int8": "cpu_int8"}  # by the name of the screening


def backend_for(screening: str, backend: str, selections: Iterable[object]) -> str:
    """The backend whose kernel screens that way; `backend` itself for "".

    Raises:
        ArgumentError: no screening of that name, a selection it does not serve, or a backend it does not belong to.
    """
    if screening == "":
        return backend
    if not isinstance(screening, str):
        raise ArgumentError(
            f"encode: screening is a {type(screening).__name__}, expected a name: {', '.join(BACKENDS)}"
        )
    if screening not in BACKENDS:
        raise unknown("screening", screening, BACKENDS, ArgumentError)
    for selection in selections:
        if not isinstance(selection, TopK):
            kind = type(selection).__name__
            raise ArgumentError(f'encode: screening="{screening}" serves TopK alone, found {kind}')
    mine = BACKENDS[screening]
    in_force = backend or ("" if torch.compiler.is_compiling() else settings.chosen_backend())
    if in_force not in ("", "cpu", mine):
        raise ArgumentError(f'encode: screening="{screening}" is the backend "cpu"\'s, found backend "{in_force}"')
    return mine


def set_from_outside() -> str:
    """The screening that SAE_KERNELS_SCREENING asks for by name, which the backend "cpu" heeds; else ""."""
    chosen = mode()
    return chosen if chosen in BACKENDS and settings.chosen_backend() in ("", "cpu") else ""
