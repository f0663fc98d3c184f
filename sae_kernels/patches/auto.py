"""Patching without touching a line: modules of known classes are patched as they are made.

`enable(["sae_lens"])` watches for the classes that a patch names in `Patch.classes`: a module that is there already is
taken at once, one that is imported later when it has been executed. Each instance is patched at the end of its
constructor, if the patch takes it, and stays as it is otherwise.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from .. import registry
from ..errors import ArgumentError
from ..specs import Patch, resolve
from .patch import patch

_watched: dict[str, dict[str, Patch]] = {}  # module → class → its patch
_taken: set[tuple[str, str]] = set()


def enable(names: Iterable[str] | None = None) -> list[str]:
    """Patch, from now on, what is made of the classes that these patches know (None: all patches); → their names.

    Raises:
        UnknownNameError: no patch of that name; names the nearest. ArgumentError: it names no classes.
    """
    specs = registry.patches.all() if names is None else [registry.patches.get(name) for name in names]
    for spec in specs:
        if not spec.classes and names is not None:
            raise ArgumentError(f"patch {spec.name!r} names no classes to watch for; call patch(module) instead")
        for target in spec.classes:
            module, _, cls = target.partition(":")
            _watched.setdefault(module, {})[cls] = spec
    if _watched and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    _take_all()
    return [spec.name for spec in specs if spec.classes]


def _take_all() -> None:
    """All watched modules that are there; of one that is being executed, the classes it has made so far."""
    for name in list(_watched):
        if name in sys.modules:
            _take(sys.modules[name])


def _take(module: ModuleType) -> None:
    """Wrap the constructors of a module's watched classes, once."""
    for name, spec in _watched.get(module.__name__, {}).items():
        cls = getattr(module, name, None)
        if cls is None or (module.__name__, name) in _taken:
            continue
        _taken.add((module.__name__, name))
        cls.__init__ = _patching(cls, cls.__init__, spec)


def _patching(cls: type, init: Callable[..., None], spec: Patch) -> Callable[..., None]:
    @functools.wraps(init)
    def patched(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        if type(self) is cls:  # a class derived from it does more, after this
            try:
                if resolve(spec.why_not)(self) is None:
                    patch(self)
            except Exception as error:  # whatever is wrong with us, their program goes on
                warnings.warn(f"sae_kernels: {cls.__name__} stays as it is: {error}", RuntimeWarning, stacklevel=2)

    return patched


class _Finder(importlib.abc.MetaPathFinder):
    """Finds nothing itself: lets the others find a watched module, and looks at it once it has been executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The others' spec, with a loader that calls `_take` in the end."""
        _take_all()
        if fullname not in _watched:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            found = finder.find_spec(fullname, path, target)
            if found is not None:
                if found.loader is not None and hasattr(found.loader, "exec_module"):
                    found.loader = _Loader(found.loader)
                return found
        return None


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the loader does."""
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """As the loader does; then our part."""
        self.loader.exec_module(module)
        _take(module)

    def __getattr__(self, name: str) -> Any:
        """`get_source`, `get_filename`, …"""
        return getattr(self.loader, name)
