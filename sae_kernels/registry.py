"""Named specs, collected from the plugins on first need."""

from __future__ import annotations

from typing import Generic, TypeVar

from .errors import PluginError, UnknownNameError, unknown
from .plugins import plugins
from .specs import Adapter, Architecture, Command, Format, Kernel, Metric, Patch, Spec

S = TypeVar("S", bound=Spec)


class Registry(Generic[S]):
    """All specs of one kind.

    Two plugins that claim one name: using that name is an error naming both; the others keep working.
    """

    def __init__(self, kind: str, hook: str, spec_type: type[S]) -> None:
        self.kind, self.hook, self.spec_type = kind, hook, spec_type
        self._generation = -1
        self._owners: dict[str, list[tuple[str, S]]] = {}

    def _load(self) -> dict[str, list[tuple[str, S]]]:
        found = plugins()
        if self._generation != found.generation:
            owners: dict[str, list[tuple[str, S]]] = {}
            for plugin, spec in found.collect(self.hook, self.spec_type):
                owners.setdefault(spec.name, []).append((plugin, spec))
            self._owners, self._generation = owners, found.generation
        return self._owners

    def names(self) -> list[str]:
        """Every registered name, sorted."""
        return sorted(self._load())

    def all(self) -> list[S]:
        """Every spec, in order of registration; PluginError where a name is contested."""
        return [self.get(name) for name in self._load()]

    def owners(self, name: str) -> list[str]:
        """The plugins that registered `name`: one, unless it is contested."""
        return [plugin for plugin, _ in self._load().get(name, [])]

    def contested(self) -> list[str]:
        """Names that more than one plugin claims."""
        return sorted(name for name, entries in self._load().items() if len(entries) > 1)

    def get(self, name: str) -> S:
        """The spec of that name.

        Raises:
            UnknownNameError: nobody registered it; names the nearest.
            PluginError: more than one plugin did; names them.
        """
        owners = self._load()
        if name not in owners:
            failed = plugins().failed()
            hint = f" (plugins that failed: {', '.join(failed)}; see sae-kernels plugins)" if failed else ""
            raise UnknownNameError(f"{unknown(self.kind, name, owners)}{hint}")
        entries = owners[name]
        if len(entries) > 1:
            claimants = " and ".join(repr(plugin) for plugin, _ in entries)
            raise PluginError(
                f"{self.kind} {name!r} is registered by {claimants}; keep one: SAE_KERNELS_BLOCK={entries[-1][0]}"
            )
        return entries[0][1]


kernels = Registry("kernel", "sae_kernels_kernels", Kernel)
architectures = Registry("architecture", "sae_kernels_architectures", Architecture)
adapters = Registry("adapter", "sae_kernels_adapters", Adapter)
formats = Registry("format", "sae_kernels_formats", Format)
patches = Registry("patch", "sae_kernels_patches", Patch)
metrics = Registry("metric", "sae_kernels_metrics", Metric)
commands = Registry("command", "sae_kernels_commands", Command)
