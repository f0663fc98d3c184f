"""Choosing a kernel: who would run an op on these arguments, who wouldn't, and why.

Every op is a torch op `torch.ops.sae_kernels.<op>`. Its implementation, for every device, is `_Dispatch`: pick a kernel
(argument > `use()` > environment > priority, unless another kernel is estimated to be cheaper), run it. The choice is
made when the op runs, so compiled graphs obey it too. The public ops call `Op`s, which pass torch's dispatcher by where
they can: on the way through it, a call spends longer than a small op takes.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import _C, Tensor
from torch._C._autograd import _profiler_enabled
from torch.nn import Parameter

from .. import registry, settings
from ..errors import BackendError, describe, unknown
from ..plugins import plugins
from ..specs import Kernel, resolve
from ._cost.constants import in_force

MOST_DECISIONS = 4096  # by sizes; ragged codes bring a new one with every batch
PLAIN = (type(None), int, bool, float)  # the types of an op's arguments that hold no tensors
_LIBRARY = torch.library.Library("sae_kernels", "DEF")  # lives as long as the process: dropping it unregisters the ops


@dataclass(frozen=True)
class Candidate:
    """One line of an explanation: a backend, why it declines (None: it would run), what it is thought to take, and on
    what terms it runs."""

    backend: str
    reason: str | None
    estimated_ms: float | None = None
    terms: str = ""

    def __str__(self) -> str:
        estimate = "" if self.estimated_ms is None else f" (estimated {_milliseconds(self.estimated_ms)})"
        terms = f" ({self.terms})" if self.terms and self.reason is None else ""
        return f"{self.backend}: {self.reason or 'would run'}{estimate}{terms}"


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


def _milliseconds(ms: float) -> str:
    return f"{ms:.0f} ms" if ms >= 100 else f"{ms:.1f} ms" if ms >= 1 else f"{ms:.3f} ms"


_LOADED: dict[int, tuple[Kernel, Callable[..., Any], Callable[..., str | None]]] = {}


def _loaded(kernel: Kernel) -> tuple[Kernel, Callable[..., Any], Callable[..., str | None]]:
    """(kernel, run, why_not). By identity: hashing a description takes longer than all else here."""
    found = _LOADED.get(id(kernel))
    if found is None or found[0] is not kernel:
        found = _LOADED[id(kernel)] = (kernel, resolve(kernel.run), resolve(kernel.why_not))
    return found


@dataclass(frozen=True)
class _Candidates:
    """The kernels of an op, best first; those with an estimate, where there are two to compare; what was decided."""

    kernels: tuple[Kernel, ...]
    rivals: tuple[Kernel, ...]
    decisions: dict[tuple[Any, ...], Kernel]


@functools.lru_cache(maxsize=256)
def _candidates(op: str, generation: int) -> _Candidates:
    mine = [registry.kernels.get(name) for name in registry.kernels.names() if name.startswith(f"{op}/")]
    mine.sort(key=lambda kernel: -kernel.priority)
    estimated = tuple(kernel for kernel in mine if kernel.estimate is not None)
    return _Candidates(tuple(mine), estimated if len(estimated) > 1 else (), {})


def candidates(op: str) -> tuple[Kernel, ...]:
    """The registered kernels of an op, best first."""
    return _candidates(op, plugins().generation).kernels


def forget_decisions() -> None:
    """Compare estimates anew: the constants behind them have changed."""
    _candidates.cache_clear()


def _named(kernel: Kernel, wanted: str) -> bool:
    """Whether a choice of backend ("": none) leaves this kernel in play."""
    return kernel.backend == wanted or not (wanted or kernel.by_name)


@functools.lru_cache(maxsize=64)
def _only_by_name(backend: str, generation: int) -> bool:
    mine = [name for name in registry.kernels.names() if name.endswith(f"/{backend}")]
    return any(registry.kernels.get(name).by_name for name in mine)


def _why_not(kernel: Kernel, args: Sequence[Any]) -> str | None:
    """The kernel's own answer; one that cannot even be imported declines with that reason."""
    try:
        return _loaded(kernel)[2](*args)
    except ImportError as error:
        return f"cannot be imported: {error}"


_resolved = functools.lru_cache(maxsize=256)(resolve)  # called for each new number of slots of ragged codes


def _estimate(kernel: Kernel, args: Sequence[Any]) -> float | None:
    """Milliseconds, or None: an estimate that cannot be made (of arguments the kernel will refuse, say) stands in
    nobody's way."""
    try:
        return None if kernel.estimate is None else float(_resolved(kernel.estimate)(*args))
    except Exception:
        return None


def _cheaper(first: Kernel, among: _Candidates, args: Sequence[Any]) -> Kernel:
    """`first`, whose priority is the highest, or the kernel that is estimated to beat it on these arguments.

    Decided once for each combination of sizes: later calls look it up.
    """
    key: list[Any] = [first.backend, args[0].dtype, args[0].get_device()]
    for arg in args:
        key.append(arg.shape if isinstance(arg, Tensor) else tuple(arg) if isinstance(arg, list) else arg)
    sizes = tuple(key)
    rival = among.decisions.get(sizes)
    if rival is None:
        if len(among.decisions) >= MOST_DECISIONS:
            among.decisions.clear()
        rival = among.decisions[sizes] = _decide(first, among.rivals, args)
    return first if rival is first or _why_not(rival, args) is not None else rival


def _decide(first: Kernel, rivals: Sequence[Kernel], args: Sequence[Any]) -> Kernel:
    """The cheapest willing kernel that beats `first` by the device's margin, else `first`."""
    mine = _estimate(first, args)
    if mine is None:
        return first
    margin = in_force(args[0].device).margin
    below = rivals[rivals.index(first) + 1 :]  # those above have declined
    timed = [(_estimate(kernel, args), kernel) for kernel in below]
    better = [(ms, kernel) for ms, kernel in timed if ms is not None and ms < margin * mine]
    for _, kernel in sorted(better, key=lambda pair: pair[0]):
        if _why_not(kernel, args) is None:
            return kernel
    return first


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
    among = _candidates(op, plugins().generation)
    found = among.kernels
    reasons = [
        _why_not(kernel, args) if kernel.backend == wanted or not kernel.by_name else f"only by name: {kernel.by_name}"
        for kernel in found
    ]
    answers = tuple(
        Candidate(kernel.backend, reason, _estimate(kernel, args) if reason is None else None, kernel.by_name)
        for kernel, reason in zip(found, reasons, strict=True)
    )
    willing = [k for k, reason in zip(found, reasons, strict=True) if reason is None and _named(k, wanted)]
    chosen = willing[0] if willing else None
    because = f"backend {wanted!r} asked for" if wanted else "highest priority among those that would run"
    if chosen is not None and not wanted:
        cheaper = _cheaper(chosen, among, args) if chosen in among.rivals else chosen
        if cheaper is not chosen:
            chosen, because = cheaper, f"cheapest by estimate; constants: {in_force(args[0].device).source}"
    return Explanation(op, _show(names, args), answers, chosen.backend if chosen else None, because)


def select(op: str, names: Sequence[str], args: Sequence[Any], backend: str = "") -> Callable[..., Any]:
    """The `run` of the kernel that takes these arguments.

    Raises:
        UnknownNameError: no kernel of this op has the backend asked for.
        BackendError: it declined, or (without a choice) all did; the message holds every candidate's reason.
    """
    wanted = backend or settings.chosen_backend()
    among = _candidates(op, plugins().generation)
    found = among.kernels
    for kernel in found:
        if _named(kernel, wanted) and _why_not(kernel, args) is None:
            if among.rivals and kernel.estimate is not None and not wanted:
                kernel = _cheaper(kernel, among, args)
            return _loaded(kernel)[1]
    backends = [kernel.backend for kernel in found]
    if wanted and wanted not in backends:
        raise unknown(f"backend of {op}", wanted, backends)
    told = explain(op, names, args, wanted)
    head = f'backend "{wanted}" was asked for and declined' if wanted else "no backend would run"
    reasons = "\n".join(f"  {candidate}" for candidate in told.candidates)
    raise BackendError(f"{op}: {head}\n  {told.arguments}\n{reasons}")


def backend_in_force(keyword_only_inputs: Mapping[str, str]) -> str:
    """The backend a gradient formula has to run on: for `ctx.backend`, in an op's `setup_context`.

    Settled in the forward, so that `use()` around it holds for its gradients too. A graph that is being compiled keeps
    the argument alone: in it, kernels are chosen when it runs. A kernel that runs only by name is the forward's alone.
    """
    given = keyword_only_inputs["backend"]
    if given and _only_by_name(given, plugins().generation):
        given = ""
    return given if given or torch.compiler.is_compiling() else settings.chosen_backend()


def _only_computes(args: Iterable[Any]) -> bool:
    """Whether all that happens to a call with these arguments is that a kernel for the CPU runs: nobody wants a
    gradient, and nobody looks on (modes, transforms, tracers, profilers, subclasses of Tensor, autocast)."""
    if (
        _C._len_torch_dispatch_stack()
        or _C._len_torch_function_stack()
        or _C._are_functorch_transforms_active()
        or _C._is_tracing()
        or _profiler_enabled()
        or _C._is_any_autocast_enabled()
    ):
        return False
    return _are_plain(args, _C.is_grad_enabled())


def _are_plain(args: Iterable[Any], recording: bool) -> bool:
    """All tensors among `args` (lists too) are ordinary ones on the CPU, through which no gradient is to flow."""
    for arg in args:
        kind = type(arg)
        if kind is Tensor or kind is Parameter:
            if not arg.is_cpu or (recording and arg.requires_grad) or arg.is_neg():
                return False
        elif kind is list:
            if not _are_plain(arg, recording):
                return False
        elif kind not in PLAIN:
            return False
    return True


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

    @functools.cached_property
    def _names(self) -> tuple[str, ...]:
        return tuple(p for p in inspect.signature(self.fake).parameters if p != "backend")

    def __call__(self, *args: Any, backend: str = "") -> Any:
        """`torch.ops.sae_kernels.<name>` on these arguments, but past torch's dispatcher where it would only hand them
        on."""
        if torch.compiler.is_compiling() or not _only_computes(args):  # the former is all that a compiler sees of it
            return getattr(torch.ops.sae_kernels, self.name)(*args, backend=backend)
        with _C._AutoDispatchBelowAutograd():  # where the dispatcher runs kernels, too
            return select(self.name, self._names, args, backend)(*args)

    def register(self) -> Op:
        """Make it `torch.ops.sae_kernels.<name>`."""

        def dispatch(*args: Any, backend: str = "") -> Any:
            run = select(self.name, self._names, args, backend)
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
