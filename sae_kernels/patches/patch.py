"""`patch`: someone else's module, faster, until undone."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from .. import registry
from ..errors import ArgumentError, BackendError, unknown
from ..ops import explain
from ..specs import resolve

_patched: weakref.WeakKeyDictionary[Any, PatchHandle] = weakref.WeakKeyDictionary()


class PatchHandle:
    """Undoes a patch: call `undo()`, or use it as a context manager. Undoing twice does nothing."""

    def __init__(self, module: Any, name: str, undo: Callable[[], None]) -> None:
        self.name = name
        self._module = weakref.ref(module)
        self._undo: Callable[[], None] | None = undo

    def undo(self) -> None:
        """Give the module its own methods back."""
        if self._undo is not None:
            self._undo()
            self._undo = None
            module = self._module()
            if module is not None:
                _patched.pop(module, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()


def patch(module: Any, **options: Any) -> PatchHandle:
    """Make one instance of a known library's module, or trainer, faster, keeping its semantics.

    `options` are the patch's own: `gradients="compat"` for sparsify. Patching a patched module returns the same handle.
    `explain("patch", module)` says what each registered patch
    thinks of it.

    Raises:
        ArgumentError: an option that the patch does not have.
        BackendError: every registered patch declined; the message holds their reasons.
    """
    handle = _patched.get(module)
    if handle is not None:
        return handle
    for spec in registry.patches.all():
        if resolve(spec.why_not)(module) is None:
            applies = resolve(spec.apply)
            known = [name for name in inspect.signature(applies).parameters][1:]
            for name in options:
                if name not in known:
                    raise unknown(f"option of patch {spec.name!r}", name, known, ArgumentError)
            undo: Any = applies(module, **options)
            handle = _patched[module] = PatchHandle(module, spec.name, undo)
            return handle
    raise BackendError(f"patch: no registered patch takes this module\n{explain('patch', module)}")
