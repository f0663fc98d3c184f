"""What a plugin hands in: frozen descriptions, cheap to build and trivial to test.

Code is given as a callable or as "package.module:attribute", which is imported on first need, so that registering
costs nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .errors import PluginError

Target = Callable[..., Any] | str


def resolve(target: Target) -> Any:
    """The object behind a callable or a "package.module:attribute" string.

    Raises:
        PluginError: the string is malformed, or the module has no such attribute.
    """
    if not isinstance(target, str):
        return target
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute:
        raise PluginError(f"target {target!r} is not of the form 'package.module:attribute'")
    module = importlib.import_module(module_name)
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise PluginError(f"target {target!r}: module {module_name} has no attribute {attribute!r}") from None


@dataclass(frozen=True)
class Kernel:
    """One op on one backend.

    `run(*args)` computes; `why_not(*args)` returns None where `run` would work, else the reason in a few words. Both
    take the op's arguments as listed in `sae_kernels.kernels`. Among kernels that would run, the highest priority wins.
    `estimate(*args)`, where given, predicts the milliseconds of `run(*args)` from shapes alone (no look at the data, a
    few microseconds): where two kernels have one and the second is clearly the cheaper, it runs instead.
    `by_name`, where given, says what is asked of whoever wants this kernel (a probability that is not 1, say): it is
    never chosen but by its backend's name, `explain` shows the words, and gradients run as if it had not been named.
    `by_kind` says that `why_not` looks at nothing but the dtype, device and layout of the floating tensors: it is not
    asked again about others of the same kind.
    `how(*args)`, where given, says in a few words how `run(*args)` would go about it, for `explain` to show.
    """

    op: str
    backend: str
    run: Target
    why_not: Target
    priority: int = 0
    estimate: Target | None = None
    by_name: str = ""
    by_kind: bool = False
    how: Target | None = None

    @property
    def name(self) -> str:
        """`op/backend`: unique among kernels."""
        return f"{self.op}/{self.backend}"


@dataclass(frozen=True)
class Architecture:
    """A kind of sparse coder: `cls` is a subclass of `sae_kernels.SparseCoder`, made by `sk.create(name, …)`."""

    name: str
    summary: str
    cls: Target


@dataclass(frozen=True)
class Adapter:
    """Where activations come from: `open(**config)` returns an `ActivationSource`; keys are its keyword parameters."""

    name: str
    summary: str
    open: Target


@dataclass(frozen=True)
class Format:
    """A weight format: `matches(path) -> bool`, `load(path) -> SparseCoder`, `save(coder, path)`; None where it
    can't."""

    name: str
    summary: str
    matches: Target
    load: Target | None = None
    save: Target | None = None


@dataclass(frozen=True)
class Patch:
    """How one library's modules are made faster.

    `why_not(module)` is None where `apply` keeps the library's semantics, else the reason; `apply(module)` returns the
    function that undoes it. `classes`, as "package.module:Class", are those whose instances SAE_KERNELS_PATCH and
    `python -m sae_kernels.patch` patch as they are made.
    """

    name: str
    summary: str
    why_not: Target
    apply: Target
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Metric:
    """A streaming metric: `make()` returns an object with `update(batch)` and `result() -> dict[str, float | …]`."""

    name: str
    summary: str
    make: Target


@dataclass(frozen=True)
class Command:
    """A subcommand of `sae-kernels`: `configure(parser)` adds arguments, `run(args) -> int | None` does the work."""

    name: str
    summary: str
    configure: Target
    run: Target


Spec = Kernel | Architecture | Adapter | Format | Patch | Metric | Command
