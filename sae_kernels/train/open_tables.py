"""The tables of a training configuration whose keys are somebody else's: an adapter's, an architecture's."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .. import registry
from ..adapters import ActivationSource
from ..architectures import SparseCoder, coder_class, coder_config, create
from ..errors import ConfigError
from ..specs import resolve
from .keys import key
from .types import type_hints

FROM_SOURCE = ("d_in", "d_target")


@dataclass(frozen=True)
class ActivationsTable:
    """`[activations]`: the adapter, and the keyword parameters of its `open`."""

    adapter: str = key("where activations come from: huggingface, tensors, torch_module, or a plugin's")
    options: Mapping[str, Any] = field(default_factory=dict)

    def accepted(self) -> tuple[dict[str, Any], dict[str, Any], bool]:
        """(annotation by key, default by key where there is one, whether any other key is taken too)."""
        opens = resolve(registry.adapters.get(self.adapter).open)
        parameters = inspect.signature(opens).parameters.values()
        hints = type_hints(opens)
        named = [p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
        taken = {p.name: hints.get(p.name, Any) for p in named}
        defaults = {p.name: p.default for p in named if p.default is not p.empty}
        return taken, defaults, any(p.kind is p.VAR_KEYWORD for p in parameters)

    def open(self, **changed: Any) -> ActivationSource:
        """The source; `changed` replaces keys, as in `open(split="heldout")`."""
        return resolve(registry.adapters.get(self.adapter).open)(**{**self.options, **changed})


@dataclass(frozen=True)
class CoderTable:
    """`[coder]`: the architecture, and the fields of its `Config`; d_in (and d_target) come from the
    source."""

    architecture: str = key("what is trained: topk, transcoder, or a plugin's")
    seed: int = key("of the initial weights and of every random number drawn while training", 0)
    fields: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"[coder] seed = {self.seed}, expected 0 <= seed < 2⁶³")

    def accepted(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """(annotation by key, default by key where there is one)."""
        config = coder_class(self.architecture).Config
        hints = type_hints(config)
        fields = [each for each in dataclasses.fields(config) if each.init]
        defaults = {each.name: each.default for each in fields if each.default is not dataclasses.MISSING}
        return {each.name: hints.get(each.name, Any) for each in fields}, defaults

    def check(self) -> None:
        """Raise the ConfigError that the architecture would raise for any source: k > d_sae, say.

        d_in may be unknown yet. A complaint that reads the same for two very different widths is not about
        d_in.
        """
        complaints: list[ConfigError] = []
        for d_in in (1, 4096):
            try:
                coder_config(self.architecture, **{"d_in": d_in, **self.fields})
            except ConfigError as error:
                complaints.append(error)
        if len(complaints) == 2 and str(complaints[0]) == str(complaints[1]):
            raise complaints[0]

    def create(self, source: ActivationSource) -> SparseCoder:
        """The coder with fresh weights, on the CPU in float32.

        Raises:
            ConfigError: widths given here, or implied by the architecture, are not the source's.
        """
        widths = {"d_in": source.d_in, "d_target": source.d_out}
        known = self.accepted()[0]
        for name in FROM_SOURCE:
            given = self.fields.get(name)
            if given is not None and given != widths[name]:
                raise ConfigError(f"[coder] {name} = {given}, the activations have {widths[name]}")
        found = {name: width for name, width in widths.items() if name in known}
        coder = create(self.architecture, seed=self.seed, **{**self.fields, **found})
        if coder.d_out != source.d_out:
            raise ConfigError(
                f"[coder] architecture = {self.architecture!r} reconstructs {coder.d_out} features, "
                f"the activations' target has {source.d_out}"
            )
        n_layers, parts = getattr(coder, "n_layers", 1), getattr(source, "widths", None)
        if n_layers > 1 and parts is not None and (len(parts) != n_layers or len(set(parts)) > 1):
            raise ConfigError(
                f"[coder] n_layers = {n_layers}, the activations are side by side in widths "
                f"{', '.join(map(str, parts))}: expected {n_layers} of one width"
            )
        return coder


def check_layers(activations: ActivationsTable, coder: CoderTable) -> None:
    """Raise ConfigError where the keys alone show that the source has not as many layers side by side as a coder of
    several layers reads or writes: hook points times models, as the built-in adapters have it."""
    wanted, models = coder.fields.get("n_layers"), activations.options.get("model")
    if wanted is None:
        return
    for name in ("hook_in", "hook_out"):
        points = activations.options.get(name)
        if points is None:
            continue
        found = len(points) if isinstance(points, (list, tuple)) else 1
        found *= len(models) if isinstance(models, (list, tuple)) else 1
        if wanted != found:
            raise ConfigError(
                f"[coder] n_layers = {wanted}, but [activations] {name} makes {found} layer{'s' * (found > 1)} "
                "(hook points, times models): expected as many"
            )
