"""Choosing a kernel: who would run an op on these arguments, who wouldn't, and why.

Every op is a torch op `torch.ops.sae_kernels.<op>`. Its implementation, for every device, is `_Dispatch`: pick a kernel
(argument > `use()` > environment > priority), run it. The choice is made when the op runs, so compiled graphs obey it
too.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import registry, settings
from ..errors import BackendError, describe, unknown
from ..plugins import plugins
from ..specs import Kernel, resolve

_LIBRARY = torch.library.Library("sae_kernels", "DEF")  # lives as long as the process: dropping it unregisters the ops


@dataclass(frozen=True)
class Candidate:
    """One line of an explanation: a backend, and why it declines (None: it would run)."""

    backend: str
    reason: str | None

    def __str__(self) -> str:
        return f"{self.backend}: {self.reason or 'would run'}"


@dataclass(frozen=True)
class Explanation:
    """What would run an op on given arguments, and why the others would not."""

    op: str
    arguments: str
    candidates: tuple[Candidate, ...]
    chosen: str | None
    because: str

    def __str__(self) -> str:
        lines = [f"{self.op}: {self.chosen or 'nothing'} ({self.because})", f"  {self.arguments}"]
        return "\n".join(lines + [f"  {candidate}" for candidate in self.candidates])


@functools.lru_cache(maxsize=256)
def _loaded(kernel: Kernel) -> tuple[Callable[..., Any], Callable[..., str | None]]:
    return resolve(kernel.run), resolve(kernel.why_not)


@functools.lru_cache(maxsize=256)
def _candidates(op: str, generation: int) -> tuple[Kernel, ...]:
    mine = [registry.kernels.get(name) for name in registry.kernels.names() if name.startswith(f"{op}/")]
    return tuple(sorted(mine, key=lambda kernel: -kernel.priority))


def candidates(op: str) -> tuple[Kernel, ...]:
    """The registered kernels of an op, best first."""
    return _candidates(op, plugins().generation)


def _why_not(kernel: Kernel, args: Sequence[Any]) -> str | None:
    """The kernel's own answer; one that cannot even be imported declines with that reason."""
    try:
        return _loaded(kernel)[1](*args)
    except ImportError as error:
        return f"cannot be imported: {error}"


def _show(names: Sequence[str], args: Sequence[Any]) -> str:
    shown = []
    for name, arg in zip(names, args, strict=False):
        if isinstance(arg, Tensor):
            shown.append(f"{name} {describe(arg)}")
        elif arg is not None and not isinstance(arg, (list, tuple)):
            shown.append(f"{name} {arg}")
        elif arg and all(not isinstance(item, Tensor) for item in arg):
            shown.append(f"{name} {list(arg)}")
    return "   ".join(shown)


def explain(op: str, names: Sequence[str], args: Sequence[Any], backend: str = "") -> Explanation:
    """Ask every candidate of an op about these arguments."""
    wanted = backend or settings.chosen_backend()
    answers = tuple(Candidate(kernel.backend, _why_not(kernel, args)) for kernel in candidates(op))
    willing = [answer.backend for answer in answers if answer.reason is None and wanted in ("", answer.backend)]
    because = f"backend {wanted!r} asked for" if wanted else "highest priority among those that would run"
    return Explanation(op, _show(names, args), answers, willing[0] if willing else None, because)


def select(op: str, names: Sequence[str], args: Sequence[Any], backend: str = "") -> Callable[..., Any]:
    """The `run` of the kernel that takes these arguments.

    Raises:
        UnknownNameError: no kernel of this op has the backend asked for.
        BackendError: it declined, or (without a choice) all did; the message holds every candidate's reason.
    """
    wanted = backend or settings.chosen_backend()
    found = candidates(op)
    for kernel in found:
        if wanted in ("", kernel.backend) and _why_not(kernel, args) is None:
            return _loaded(kernel)[0]
    backends = [kernel.backend for kernel in found]
    if wanted and wanted not in backends:
        raise unknown(f"backend of {op}", wanted, backends)
    told = explain(op, names, args, wanted)
    head = f'backend "{wanted}" was asked for and declined' if wanted else "no backend would run"
    reasons = "\n".join(f"  {candidate}" for candidate in told.candidates)
    raise BackendError(f"{op}: {head}\n  {told.arguments}\n{reasons}")


@dataclass(frozen=True)
class Op:
    """A torch op of this package: its schema, its shapes under tracing, its gradient.

    Schemas end in `*, str backend=""`. `backward(ctx, *grads)` and `setup_context(ctx, inputs, keyword_only_inputs,
    output)` are as in `torch.library.register_autograd`.
    """

    name: str
    schema: str
    fake: Callable[..., Any]
    backward: Callable[..., Any] | None = None
    setup_context: Callable[..., None] | None = None

    def register(self) -> Op:
        """Make it `torch.ops.sae_kernels.<name>`."""
        names = tuple(p for p in inspect.signature(self.fake).parameters if p != "backend")

        def dispatch(*args: Any, backend: str = "") -> Any:
            run = select(self.name, names, args, backend)
            device = args[0].device.type
            if not torch.is_autocast_enabled(device):
                return run(*args)
            with torch.autocast(device, enabled=False):  # the public ops have cast; kernels accumulate in float32
                return run(*args)

        qualname = f"sae_kernels::{self.name}"
        _LIBRARY.define(f"{self.name}{self.schema}", tags=(torch.Tag.pt2_compliant_tag,))
        _LIBRARY.impl(self.name, dispatch, "CompositeExplicitAutograd")
        torch.library.register_fake(qualname, self.fake, lib=_LIBRARY)
        if self.backward is not None:
            torch.library.register_autograd(qualname, self.backward, setup_context=self.setup_context, lib=_LIBRARY)
        return self
