"""Hook points: where in a `torch.nn.Module` activations are read or replaced.

Grammar: `<dotted module name>[:in|:out]`. `model.layers.3.mlp` and `model.layers.3.mlp:out` are the module's
output (its first tensor, where it returns a tuple, a dict or a ModelOutput); `model.layers.3.mlp:in` is its
first tensor input, in the order of `forward`'s parameters. `:in` and `:out` alone are the whole model.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..errors import AdapterError, ArgumentError, DeviceError, DtypeError, ShapeError, describe, unknown
from . import _tensor_slots as slots

Replace = Callable[[Tensor], Tensor]
Points = str | tuple[str, ...]  # one hook point, or several whose features stand side by side


@dataclass(frozen=True, slots=True)
class HookPoint:
    """A module's name and the side of it that is meant."""

    module: str
    side: str = "out"

    def __post_init__(self) -> None:
        if self.side not in ("in", "out"):
            raise ArgumentError(f"hook point '{self}': side {self.side!r}, expected 'in' or 'out'")

    def __str__(self) -> str:
        return f"{self.module}:{self.side}"

    @classmethod
    def parse(cls, text: str | HookPoint) -> HookPoint:
        """`"a.b:in"` -> HookPoint("a.b", "in"); without a side, the output.

        Raises:
            ArgumentError: no text, or a side other than in and out.
        """
        if isinstance(text, HookPoint):
            return text
        if not isinstance(text, str) or not text:
            raise ArgumentError(f"hook point {text!r}: expected 'module.name', optionally with ':in' or ':out'")
        module, colon, side = text.partition(":")
        return cls(module, side if colon else "out")

    def resolve(self, model: nn.Module) -> nn.Module:
        """The module of `model` that this point names.

        Raises:
            UnknownNameError: there is none; names the nearest.
        """
        try:
            return model.get_submodule(self.module)
        except AttributeError:
            names = (name for name, _ in model.named_modules(remove_duplicate=False) if name)
            raise unknown(f"module of {type(model).__name__}", self.module, names) from None


def listed(name: str, points: str | Sequence[str]) -> tuple[str, ...]:
    """One hook point, or several in their order, as a tuple; `name` is the argument they came in.

    Raises:
        ArgumentError: none, something that is no hook point, or one twice.
    """
    found = (points,) if isinstance(points, str) else tuple(points) if isinstance(points, (list, tuple)) else ()
    if not found:
        raise ArgumentError(f"{name} = {points!r}, expected a hook point or a list of them")
    parsed = [HookPoint.parse(point) for point in found]
    if twice := [str(point) for i, point in enumerate(parsed) if point in parsed[:i]]:
        raise ArgumentError(f"{name}: {twice[0]!r} stands there twice, expected different hook points")
    return found


def as_given(name: str, points: str | Sequence[str]) -> Points:
    """A hook point as it is, several as a tuple, checked by `listed`: how a source keeps what it was asked for."""
    found = listed(name, points)
    return points if isinstance(points, str) else found


_numbers = itertools.count()
_hidden: ContextVar[range] = ContextVar("hook_points_hidden", default=range(0))


@contextmanager
def hide_since(number: int) -> Generator[None]:
    """Within the block, what was entered from `number` (of `mark`) up to now, `capture` and `intervene`, does nothing;
    what is entered in it does."""
    token = _hidden.set(range(number, next(_numbers)))
    try:
        yield
    finally:
        _hidden.reset(token)


def mark() -> int:
    """A number for `hide_since`: of now."""
    return next(_numbers)


def is_hidden(number: int) -> bool:
    """Whether what was entered at that `mark` is to do nothing."""
    return number in _hidden.get()


class _Stop(BaseException):
    """Ends a forward pass early; no Exception, so that a model's own `except Exception` lets it through."""


@contextmanager
def capture(
    model: nn.Module, points: Iterable[str | HookPoint], *, stop_early: bool = False
) -> Generator[dict[str, Tensor]]:
    """Copy what passes the hook points during one forward pass, into a dict keyed by the points as written.

        with capture(model, ["layers.3:in", "layers.3"]) as seen:
            model(ids)
        seen["layers.3"]

    A capture entered inside an `intervene` sees the replaced activations. Copies, because a later in-place
    operation would change what was seen; gradients flow through them.

    `stop_early`: leave the forward pass, and the `with` block, once every point has been seen.

    Raises:
        AdapterError: a point was never reached, has no tensor, or its module ran twice.
        UnknownNameError, ArgumentError: see `HookPoint`.
    """
    wanted: dict[HookPoint, list[str]] = {}
    for key in [points] if isinstance(points, (str, HookPoint)) else points:
        wanted.setdefault(HookPoint.parse(key), []).append(str(key))
    seen: dict[str, Tensor] = {}
    stop = _Stop()

    def look(point: HookPoint, activation: Tensor) -> None:
        keys = wanted[point]
        if keys[0] in seen:
            raise AdapterError(
                f"hook point '{point}': its module ran twice in one capture; "
                "expected one forward pass, and a module that runs once in it"
            )
        seen.update(dict.fromkeys(keys, activation.clone()))
        if stop_early and all(keys[0] in seen for keys in wanted.values()):
            raise stop

    with ExitStack() as handles:
        for point in wanted:
            _watch(handles, model, point, look)
        try:
            yield seen
        except _Stop as caught:
            if caught is not stop:  # an enclosing capture's
                raise
    if missed := sorted(str(point) for point, keys in wanted.items() if keys[0] not in seen):
        raise AdapterError(f"hook points never reached by a forward pass: {', '.join(missed)}")


@contextmanager
def intervene(model: nn.Module, replace: Mapping[str, Replace]) -> Generator[None]:
    """Within the block, every activation passing a hook point becomes `replace[point](activation)`.

    The replacement has the activation's shape, dtype and device. A module that runs several times is replaced
    each time. Nested blocks apply from the outermost in; what surrounds the tensor (tuple, dict, keyword
    arguments) is kept.

    Raises:
        ShapeError, DtypeError, DeviceError: a replacement differs from its activation.
        AdapterError: the model ran, but never reached a point: the intervention would silently have done
            nothing.
        UnknownNameError, ArgumentError: see `HookPoint`.
    """
    functions = [(HookPoint.parse(key), function) for key, function in replace.items()]
    reached: set[HookPoint] = set()
    completed: list[None] = []  # grows with every forward pass of the whole model that was not cut short

    def change(point: HookPoint, activation: Tensor, function: Replace) -> Tensor:
        reached.add(point)
        new = function(activation)
        _check_replacement(point, activation, new)
        return new

    with ExitStack() as handles:
        for point, function in functions:
            _watch(handles, model, point, lambda p, a, f=function: change(p, a, f))
        number = mark()
        root = model.register_forward_hook(lambda *_: None if is_hidden(number) else completed.append(None))
        handles.callback(root.remove)
        yield
    missed = sorted({str(point) for point, _ in functions if point not in reached})
    if completed and missed:
        raise AdapterError(f"hook points never reached, so never replaced: {', '.join(missed)}")


def _watch(
    handles: ExitStack, model: nn.Module, point: HookPoint, look: Callable[[HookPoint, Tensor], Tensor | None]
) -> None:
    """Call `look(point, activation)` whenever the point is passed; a tensor it returns is passed on."""
    module, number = point.resolve(model), mark()
    if point.side == "in":
        order = list(inspect.signature(module.forward).parameters)

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if is_hidden(number):
                return None
            slot = slots.first_input(args, kwargs, order)
            if slot is None:
                raise AdapterError(f"hook point '{point}': called without a tensor")
            new = look(point, slots.get_input(args, kwargs, slot))
            return None if new is None else slots.set_input(args, kwargs, slot, new)

        handles.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
    else:

        def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if is_hidden(number):
                return None
            slot = slots.first_output(output)
            if slot is None:
                raise AdapterError(f"hook point '{point}': returned {type(output).__name__} without a tensor in it")
            new = look(point, slots.get_output(output, slot))
            return None if new is None else slots.set_output(output, slot, new)

        handles.callback(module.register_forward_hook(after).remove)


def _check_replacement(point: HookPoint, old: Tensor, new: object) -> None:
    if not isinstance(new, Tensor):
        raise AdapterError(f"hook point '{point}': replacement {type(new).__name__}, expected {describe(old)}")
    for attribute, error in (("shape", ShapeError), ("dtype", DtypeError), ("device", DeviceError)):
        if getattr(new, attribute) != getattr(old, attribute):
            raise error(f"hook point '{point}': replacement {describe(new)}, expected {describe(old)}")
