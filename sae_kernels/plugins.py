"""Finds, loads and isolates plugins.

Built-ins are plugins too: named by dotted path in `BUILTINS` (the one upward edge of the package), loaded the way a
stranger's entry point is, and blocked the same way. A plugin that fails to load is reported and left out; it never
takes the host down.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import pluggy

from . import hookspecs, settings
from .errors import PluginError, unknown

ENTRY_POINT_GROUP = "sae_kernels"
HOOK_PREFIX = "sae_kernels_"
S = TypeVar("S")

BUILTINS = {
    "kernels": "sae_kernels.kernels.builtin",
    "architectures": "sae_kernels.architectures.builtin",
    "adapters": "sae_kernels.adapters.builtin",
    "formats": "sae_kernels.formats.builtin",
    "metrics": "sae_kernels.evaluate.builtin",
    "patches": "sae_kernels.patches.builtin",
    "commands": "sae_kernels.commands.builtin",
    "tensorboard": "sae_kernels.train.tensorboard",
}


@dataclass(frozen=True)
class PluginInfo:
    """One line of `sae-kernels plugins`."""

    name: str
    source: str
    status: str  # "loaded", "blocked" or "failed"
    error: str = ""
    hooks: tuple[str, ...] = ()


class Plugins:
    """A pluggy manager with the outcome of every load beside it."""

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager(hookspecs.PROJECT)
        self.manager.add_hookspecs(hookspecs)
        self.infos: dict[str, PluginInfo] = {}
        self.generation = 0  # registries compare it to see that plugins came or went

    def load(
        self, name: str, source: str, import_plugin: Callable[[], object], blocked: frozenset[str] = frozenset()
    ) -> None:
        """Import and register one plugin; whatever goes wrong is recorded, not raised."""
        if name in self.infos and self.infos[name].status == "loaded":
            other = self.infos[name].source
            key = f"{name} ({source})"
            self.infos[key] = PluginInfo(
                key, source, "failed", f"two plugins are named {name!r}: from {other} and from {source}"
            )
            return
        if name in blocked:
            self.infos[name] = PluginInfo(name, source, "blocked", "named in SAE_KERNELS_BLOCK")
            return
        try:
            hooks = self.register(import_plugin(), name, source)
        except Exception as error:  # a stranger's import can raise anything
            self.infos[name] = PluginInfo(name, source, "failed", f"{type(error).__name__}: {error}")
        else:
            self.infos[name] = PluginInfo(name, source, "loaded", hooks=hooks)

    def register(self, plugin: object, name: str, source: str = "registered at run time") -> tuple[str, ...]:
        """Register an object whose methods or functions carry `hookimpl`.

        Raises:
            PluginError: the name is taken, a hook's signature is wrong, or a hook of that name does not exist.
        """
        if self.manager.has_plugin(name):
            raise PluginError(f"two plugins are named {name!r}: from {self.infos[name].source} and from {source}")
        _check_hooks(plugin, name, source)
        try:
            self.manager.register(plugin, name)
            self.manager.check_pending()
        except (pluggy.PluginValidationError, ValueError) as error:  # ValueError: the object is registered already
            if self.manager.has_plugin(name):
                self.manager.unregister(name=name)
            raise PluginError(f"plugin {name!r} from {source}: {error}") from error
        hooks = tuple(sorted(caller.name for caller in self.manager.get_hookcallers(plugin) or ()))
        self.infos[name] = PluginInfo(name, source, "loaded", hooks=hooks)
        self.generation += 1
        return hooks

    def failed(self) -> list[str]:
        """Names of the plugins that did not load, or misbehaved since."""
        return [name for name, info in self.infos.items() if info.status == "failed"]

    def unregister(self, name: str) -> None:
        """Take a plugin out again."""
        if not self.manager.has_plugin(name):
            raise PluginError(f"no plugin named {name!r} is registered")
        self.manager.unregister(name=name)
        self.infos.pop(name, None)
        self.generation += 1

    def collect(self, hook: str, spec_type: type[S]) -> Iterator[tuple[str, S]]:
        """(plugin name, spec) of every spec the plugins return for `hook`; one that misbehaves is reported and
        skipped."""
        for impl in getattr(self.manager.hook, hook).get_hookimpls():
            try:
                specs = list(impl.function())
                for spec in specs:
                    if not isinstance(spec, spec_type):
                        raise TypeError(f"returned a {type(spec).__name__}, expected {spec_type.__name__}")
            except Exception as error:  # isolation, as in load()
                self._report(impl.plugin_name, hook, error)
                continue
            for spec in specs:
                yield impl.plugin_name, spec

    def notify(self, hook: str, **kwargs: Any) -> None:
        """Call a life-cycle hook on every plugin. One that raises is warned about; training goes on."""
        for impl in getattr(self.manager.hook, hook).get_hookimpls():
            try:
                impl.function(*(kwargs[name] for name in impl.argnames))
            except Exception as error:  # an experiment's logger must not cost the run
                self._report(impl.plugin_name, hook, error)

    def _report(self, name: str, hook: str, error: Exception) -> None:
        message = f"{hook} raised {type(error).__name__}: {error}"
        info = self.infos.get(name)
        if info is None or info.error != message:  # warn once, not at every step
            warnings.warn(f"sae_kernels plugin {name!r}: {message}", RuntimeWarning, stacklevel=4)
        source = info.source if info else "?"
        self.infos[name] = PluginInfo(name, source, "failed", message, info.hooks if info else ())


def _check_hooks(plugin: object, name: str, source: str) -> None:
    """Refuse functions named like hooks that pluggy would pass over: misspelt, or without `hookimpl`."""
    known = [hook for hook in vars(hookspecs) if hook.startswith(HOOK_PREFIX)]
    for attribute in dir(plugin):
        function = getattr(plugin, attribute, None)
        if not attribute.startswith(HOOK_PREFIX) or not callable(function):
            continue
        if attribute not in known:
            raise unknown(f"hook in plugin {name!r} from {source}:", attribute, known, PluginError)
        if not hasattr(function, f"{hookspecs.PROJECT}_impl"):
            raise PluginError(f"plugin {name!r} from {source}: {attribute} lacks the decorator @sae_kernels.hookimpl")


@functools.cache
def plugins() -> Plugins:
    """The process's plugins: built-ins, then entry points of the group `sae_kernels`, loaded at the first call."""
    found = Plugins()
    blocked = settings.blocked_plugins()
    for name, module in BUILTINS.items():
        found.load(name, f"built in ({module})", functools.partial(importlib.import_module, module), blocked)
    for entry in sorted(importlib.metadata.entry_points(group=ENTRY_POINT_GROUP), key=lambda e: e.name):
        dist = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "unknown distribution"
        found.load(entry.name, f"{dist} ({entry.value})", entry.load, blocked)
    return found
