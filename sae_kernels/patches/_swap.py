"""One instance of somebody else's class, with some of its methods replaced."""

from __future__ import annotations

import copyreg
import weakref
from collections.abc import Callable, Mapping
from typing import Any

Method = Callable[..., Any]
_made: dict[tuple[type, tuple[tuple[str, Method], ...]], type] = {}


def swap(module: Any, methods: Mapping[str, Method]) -> Callable[[], None]:
    """Give one instance a class derived from its own, with `methods` in the place of those of these names (`super`'s
    are reached as `host(self)`); → what puts its class back.

    A class, not attributes on the instance: nothing appears in `__dict__`; `isinstance`, `.to()`, `state_dict()` and
    hooks see what they saw. A pickle or a deep copy is one of the host's class: it can be read where this package is
    not installed, and patched anew.
    """
    host = type(module)
    key = (host, tuple(sorted(methods.items())))
    if key not in _made:
        body = {
            **methods,
            "__module__": host.__module__,
            "__qualname__": host.__qualname__,
            "__doc__": host.__doc__,
            "__reduce_ex__": _as_host(host),
            "_sae_kernels_host": host,
        }
        _made[key] = type(host.__name__, (host,), body)
    module.__class__ = _made[key]
    instance = weakref.ref(module)  # what undoes a patch keeps no module alive

    def undo() -> None:
        module = instance()
        if type(module) is _made[key]:  # somebody who swapped it again has the last word
            module.__class__ = host

    return undo


def in_turn(*steps: Callable[[], None]) -> Callable[[], None]:
    """What undoes a patch of several parts."""

    def undo() -> None:
        for step in steps:
            step()

    return undo


def host(module: Any) -> type:
    """The class that a patched module had; its own where it is not patched."""
    return getattr(type(module), "_sae_kernels_host", type(module))


def _as_host(host: type) -> Method:
    def reduce(self: Any, protocol: int) -> Any:
        """Pickled and copied as an instance of the host's class; the state is what the host's own pickle holds."""
        patched = type(self)
        self.__class__ = host
        try:
            _, _, state, *rest = self.__reduce_ex__(max(protocol, 2))
        finally:
            self.__class__ = patched
        return (copyreg._reconstructor, (host, object, None), state, *rest)  # pyright: ignore[reportAttributeAccessIssue]

    return reduce
