"""Choosing a kernel: who would run an op on these arguments, who wouldn't, and why.

Every op is a torch op `torch.ops.sae_kernels.<op>`. Its implementation, for every device, is `_Dispatch`: pick a kernel
(argument > `use()` > environment > priority, unless another kernel is estimated to be cheaper), run it. The choice is
made when the op runs, so compiled graphs obey it too. The public ops call `Op`s, which pass torch's dispatcher by where
they can: on the way through it, a call spends longer than a small op takes.
"""

from __future__ import annotations

import contextlib
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
from ._explanation import Candidate, Explanation

MOST_DECISIONS = 4096  # by sizes; ragged codes bring a new one with every batch
PLAIN = (type(None), int, bool, float)  # the types of an op's arguments that hold no tensors
_LIBRARY = torch.library.Library("sae_kernels", "DEF")  # lives as long as the process: dropping it unregisters the ops


class _Ready:
    """A kernel with its functions, found when they are first called."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    @functools.cached_property
    def run(self) -> Callable[..., Any]:
        return resolve(self.kernel.run)

    @functools.cached_property
    def asked(self) -> Callable[..., str | None]:
        return resolve(self.kernel.why_not)

    @functools.cached_property
    def estimate(self) -> Callable[..., float] | None:
        return None if self.kernel.estimate is None else resolve(self.kernel.estimate)

    def why_not(self, args: Sequence[Any]) -> str | None:
        """The kernel's own answer; one that cannot even be imported declines with that reason."""
        try:
            reason = self.asked(*args)
            if reason is None:
                _ = self.run
            return reason
        except ImportError as error:
            return f"cannot be imported: {error}"

    def how(self, args: Sequence[Any]) -> str:
        """How it would run; "" where it does not say. What a stranger's `how` raises is shown, and stands in nobody's
        way."""
        try:
            return "" if self.kernel.how is None else str(resolve(self.kernel.how)(*args))
        except Exception as error:
            return f"how: {type(error).__name__}: {error}"

    def milliseconds(self, args: Sequence[Any]) -> float | None:
        """Its estimate; None where there is none, or where it cannot be made (of arguments the kernel will refuse,
        say): that stands in nobody's way."""
        try:
            return None if self.estimate is None else float(self.estimate(*args))
        except Exception:
            return None


@dataclass(frozen=True)
class _Candidates:
    """The kernels of an op, best first; those that may be chosen, by the backend asked for ("": none); those with an
    estimate, where there are two to compare; what was decided, by sizes, and by (backend asked for, `kind`)."""

    kernels: tuple[_Ready, ...]
    named: Mapping[str, tuple[_Ready, ...]]
    rivals: tuple[_Ready, ...]
    decisions: dict[tuple[Any, ...], _Ready]
    by_kind: dict[tuple[str, torch.dtype], _Ready]


@functools.lru_cache(maxsize=256)
def _candidates(op: str, generation: int) -> _Candidates:
    found = [registry.kernels.get(name) for name in registry.kernels.names() if name.startswith(f"{op}/")]
    mine = tuple(_Ready(kernel) for kernel in sorted(found, key=lambda kernel: -kernel.priority))
    named: dict[str, tuple[_Ready, ...]] = {
        each.kernel.backend: (each,) for each in mine
    }  # a backend has one kernel of an op
    named[""] = tuple(each for each in mine if not each.kernel.by_name)
    estimated = tuple(each for each in mine if each.kernel.estimate is not None)
    return _Candidates(mine, named, estimated if len(estimated) > 1 else (), {}, {})


def candidates(op: str) -> tuple[Kernel, ...]:
    """The registered kernels of an op, best first."""
    return tuple(each.kernel for each in _candidates(op, plugins().generation).kernels)


def forget_decisions() -> None:
    """Ask and compare anew: what kernels answer, or the constants behind their estimates, have changed."""
    _candidates.cache_clear()


@functools.lru_cache(maxsize=64)
def _only_by_name(backend: str, generation: int) -> bool:
    mine = [name for name in registry.kernels.names() if name.endswith(f"/{backend}")]
    return any(registry.kernels.get(name).by_name for name in mine)


def _cheaper(first: _Ready, among: _Candidates, args: Sequence[Any]) -> _Ready:
    """`first`, whose priority is the highest, or the kernel that is estimated to beat it on these arguments.

    Decided once for each combination of sizes: later calls look it up.
    """
    matrix = args[0]
    sizes: tuple[Any, ...] = (first, matrix.dtype, matrix.get_device())
    for arg in args:
        sizes += (arg.shape if isinstance(arg, Tensor) else tuple(arg) if isinstance(arg, list) else arg,)
    rival = among.decisions.get(sizes)
    if rival is None:
        if len(among.decisions) >= MOST_DECISIONS:
            among.decisions.clear()
        rival = among.decisions[sizes] = _decide(first, among.rivals, args)
    return first if rival is first or rival.why_not(args) is not None else rival


def _decide(first: _Ready, rivals: Sequence[_Ready], args: Sequence[Any]) -> _Ready:
    """The cheapest willing kernel that beats `first` by the device's margin, else `first`."""
    mine = first.milliseconds(args)
    if mine is None:
        return first
    margin = in_force(args[0].device).margin
    below = rivals[rivals.index(first) + 1 :]  # those above have declined
    timed = [(each.milliseconds(args), each) for each in below]
    better = [(ms, each) for ms, each in timed if ms is not None and ms < margin * mine]
    for _, each in sorted(better, key=lambda pair: pair[0]):
        if each.why_not(args) is None:
            return each
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
    reasons = {
        each: f"only by name: {each.kernel.by_name}"
        if each.kernel.by_name and each.kernel.backend != wanted
        else each.why_not(args)
        for each in among.kernels
    }
    answers = tuple(
        Candidate(each.kernel.backend, reason, terms=each.kernel.by_name)
        if reason is not None
        else Candidate(each.kernel.backend, None, each.milliseconds(args), each.kernel.by_name, each.how(args))
        for each, reason in reasons.items()
    )
    willing = [each for each in among.named.get(wanted, ()) if reasons[each] is None]
    chosen = willing[0] if willing else None
    because = f"backend {wanted!r} asked for" if wanted else "highest priority among those that would run"
    if chosen is not None and not wanted:
        cheaper = _cheaper(chosen, among, args) if chosen in among.rivals else chosen
        if cheaper is not chosen:
            chosen, because = cheaper, f"cheapest by estimate; constants: {in_force(args[0].device).source}"
    return Explanation(op, _show(names, args), answers, chosen.kernel.backend if chosen else None, because)


def select(
    op: str, names: Sequence[str], args: Sequence[Any], backend: str = "", kind: torch.dtype | None = None
) -> Callable[..., Any]:
    """The `run` of the kernel that takes these arguments (`kind`: see `Op`).

    Raises:
        UnknownNameError: no kernel of this op has the backend asked for.
        BackendError: it declined, or (without a choice) all did; the message holds every candidate's reason.
    """
    wanted = backend or settings.chosen_backend()
    among = _candidates(op, plugins().generation)
    first = None if kind is None else among.by_kind.get((wanted, kind))
    if first is None:
        asked = []
        for each in among.named.get(wanted, ()):
            asked.append(each)
            if each.why_not(args) is None:
                first = each
                if kind is not None and all(each.kernel.by_kind for each in asked):
                    among.by_kind[wanted, kind] = first
                break
    if first is not None:
        if among.rivals and not wanted and first.kernel.estimate is not None:
            first = _cheaper(first, among, args)
        return first.run
    backends = [each.kernel.backend for each in among.kernels]
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


def _somebody_looks() -> bool:
    """Modes, transforms, tracers, profilers or autocast want to see what is called."""
    return bool(
        _C._len_torch_dispatch_stack()
        or _C._len_torch_function_stack()
        or _C._are_functorch_transforms_active()
        or _C._is_tracing()
        or _profiler_enabled()
        or _C._is_any_autocast_enabled()
    )


def _wants(args: Iterable[Any], known: bool = False) -> str:
    """What there is to do for a call besides running a kernel for the CPU: "" is nothing, "gradient" to record one;
    "dispatcher", where a tensor among `args` (lists too) is no ordinary one on the CPU, is for torch to say. `known`:
    those that are in no list are ordinary (see `Op`)."""
    recording, found = _C.is_grad_enabled(), ""
    for arg in args:
        kind = type(arg)
        if kind is Tensor or kind is Parameter:
            if not known and (not arg.is_cpu or arg.is_neg()):
                return "dispatcher"
            if recording and arg.requires_grad:
                found = "gradient"
        elif kind is list:
            if arg and type(arg[0]) not in PLAIN:  # the items of a list are of one kind
                found = _wants(arg) or found
                if found == "dispatcher":
                    return found
        elif kind not in PLAIN:
            return "dispatcher"
    return found


NAMESPACE = "sae_kernels_"  # begins the names of the ops' nodes in an autograd graph


def _recorded(op: Op) -> type[torch.autograd.Function]:
    """The op with its gradient, for ordinary tensors: what `register_autograd` makes of it takes three times as long.

    Called with the op's arguments, its kernel's `run`, and the backend asked for; a list of outputs comes as a tuple.
    """
    setup, formula = op.setup_context, op.backward
    assert setup is not None
    assert formula is not None

    def forward(ctx: Any, *args: Any) -> Any:
        inputs = args[:-2]
        with _C._AutoDispatchBelowAutograd():
            output = args[-2](*inputs)
            setup(ctx, inputs, {"backend": args[-1]}, output)
        ctx.in_a_list = type(output) is list
        return tuple(output) if ctx.in_a_list else output

    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        found = formula(ctx, list(grads)) if ctx.in_a_list else formula(ctx, *grads)
        return (*(None if isinstance(grad, list) else grad for grad in found), None, None)

    functions = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type(f"{NAMESPACE}{op.name}", (torch.autograd.Function,), functions)


def _hide_from_compiler(function: Callable[..., Any]) -> None:
    """Let `torch.compile` trace nothing of what runs inside. Where a graph breaks at an op, as at one whose output has
    as many slots as there are active latents, the op is called from a resumed frame, and its Python would be traced.

    As `torch.compiler.disable`, which imports all of the compiler for it."""
    with contextlib.suppress(ImportError, AttributeError):
        from torch._C._dynamo import eval_frame

        skip = eval_frame._FrameAction.SKIP
        eval_frame.set_code_exec_strategy(function.__code__, eval_frame._FrameExecStrategy(skip, skip))


@dataclass(frozen=True)
class Op:
    """A torch op of this package: its schema, its shapes under tracing, its gradient.

    Calls pass torch's dispatcher by where they can. A caller who has seen that all floating tensors among the arguments
    are ordinary strided ones on the CPU, of one dtype, with no negative bit, and that nothing is being compiled, may
    say so: that is their `kind`.
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

    @functools.cached_property
    def _recorded(self) -> type[torch.autograd.Function] | None:
        return None if self.backward is None else _recorded(self)

    def __call__(self, *args: Any, backend: str = "", kind: torch.dtype | None = None) -> Any:
        """`torch.ops.sae_kernels.<name>` on these arguments, but past torch's dispatcher where it would only hand them
        on, or record the gradient on the way."""
        wants = "dispatcher"
        if (kind or not torch.compiler.is_compiling()) and not _somebody_looks():  # of which a compiler sees no more
            wants = _wants(args, kind is not None)
        if wants == "":
            return select(self.name, self._names, args, backend, kind)(*args)
        if wants == "gradient" and self._recorded is not None:
            found = self._recorded.apply(*args, select(self.name, self._names, args, backend, kind), backend)
            return list(found) if self.schema.endswith("Tensor[]") else found
        return getattr(torch.ops.sae_kernels, self.name)(*args, backend=backend)

    def register(self) -> Op:
        """Make it `torch.ops.sae_kernels.<name>`."""

        def dispatch(*args: Any, backend: str = "") -> Any:
            run = select(self.name, self._names, args, backend)
            device = args[0].device.type
            if not torch.is_autocast_enabled(device):
                return run(*args)
            with torch.autocast(device, enabled=False):  # the public ops have cast; kernels accumulate in float32
                return run(*args)

        _hide_from_compiler(dispatch)
        qualname = f"sae_kernels::{self.name}"
        _LIBRARY.define(f"{self.name}{self.schema}", tags=(torch.Tag.pt2_compliant_tag,))
        _LIBRARY.impl(self.name, dispatch, "CompositeExplicitAutograd")
        torch.library.register_fake(qualname, self.fake, lib=_LIBRARY)
        if self.backward is not None:
            torch.library.register_autograd(qualname, self.backward, setup_context=self.setup_context, lib=_LIBRARY)
        return self
