"""Activations of any `torch.nn.Module`, by hook-point name."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import AdapterError, ArgumentError, PluginError, describe
from ..specs import resolve
from ._order import BlockOrder, Split, split_range
from .base import ActivationBatch
from .hook_points import as_given, capture, listed


class ModuleActivations:
    """An `ActivationSource`: block i is what passes the hook points while the module runs on one batch.

    `batches` is a sequence (`len` and `[i]`; a list, a map-style data set), because a block must be there
    again when training resumes. A batch is the module's input: a tensor, a tuple of positional or a mapping
    of keyword arguments. The last dimension of an activation holds its features, the others are its tokens.
    The module runs in eval mode without gradient, and is left in the mode it was in. `hook_out` None: target
    is input.

    Raises:
        AdapterError: `batches` is no sequence or empty; the two hook points see different numbers of tokens.
        UnknownNameError, ArgumentError: a hook point that is not one of the module's.
    """

    def __init__(
        self,
        module: nn.Module,
        batches: Sequence[Any],
        hook_in: str | Sequence[str],
        hook_out: str | Sequence[str] | None = None,
        *,
        shuffle: bool = False,
        seed: int = 0,
        epochs: int | None = 1,
    ) -> None:
        if not isinstance(module, nn.Module):
            raise AdapterError(f"module is {type(module).__name__}, expected a torch.nn.Module")
        if not (hasattr(batches, "__len__") and hasattr(batches, "__getitem__")):
            raise AdapterError(
                f"batches is {type(batches).__name__}, expected a sequence: training resumes at batches[i]"
            )
        self.module, self.batches = module, batches
        self.hook_in = as_given("hook_in", hook_in)
        self.hook_out = self.hook_in if hook_out is None else as_given("hook_out", hook_out)
        self._inputs, self._targets = listed("hook_in", self.hook_in), listed("hook_out", self.hook_out)
        self.order = BlockOrder(len(batches), 1, shuffle, seed, epochs)
        self.n_blocks = self.order.n_blocks
        first = self._run(0)
        self.d_in, self.d_out = first.input.shape[1], first.target.shape[1]

    def block(self, index: int) -> ActivationBatch:
        """Activations of block `index`, on the module's device.

        Raises:
            AdapterError: there is no such block, or its activations do not fit the first's.
        """
        found = self._run(int(self.order.items(index)))
        if (found.input.shape[1], found.target.shape[1]) != (self.d_in, self.d_out):
            raise AdapterError(
                f"block {index}: input {describe(found.input)}, target {describe(found.target)}, "
                f"expected widths {self.d_in} and {self.d_out} as in the first batch"
            )
        order = self.order.rows(index, len(found))
        if order is None:
            return found
        order = order.to(found.input.device)
        input = found.input[order]
        return ActivationBatch(input, input if found.target is found.input else found.target[order])

    def _run(self, number: int) -> ActivationBatch:
        with (
            _evaluating(self.module),
            capture(self.module, {*self._inputs, *self._targets}, stop_early=True) as seen,
        ):
            _call(self.module, self.batches[number])
        self.widths = tuple(seen[point].shape[-1] for point in self._inputs)
        input = _side_by_side(seen, self._inputs)
        return ActivationBatch(input, input if self._targets == self._inputs else _side_by_side(seen, self._targets))


def open_source(
    *,
    factory: str | Callable[[], tuple[nn.Module, Sequence[Any]]],
    hook_in: str | list[str],
    hook_out: str | list[str] | None = None,
    split: Split = "train",
    heldout: float = 0.05,
    seed: int = 0,
    epochs: int | None = None,
) -> ModuleActivations:
    """The `[activations]` table of a training configuration with `adapter = "torch_module"`.

    factory: "package.module:function"; called without arguments, it returns (module, batches), see
        `ModuleActivations`
    hook_in, hook_out: hook points of the coder's input and target, each one or a list, whose features stand side by
        side; without hook_out the target is the input
    split: "train" (shuffled), "heldout" or "all" (both in order)
    heldout: fraction of the batches, from the end, that "train" leaves out
    seed: of the order of batches and rows
    epochs: passes over the batches; by default endless for "train", one otherwise
    """
    try:
        module, batches = resolve(factory)()
    except (PluginError, ImportError) as error:
        raise ArgumentError(f"factory = {factory!r}: {error}") from error
    chosen = split_range(len(batches), split, heldout)
    train = split == "train"
    return ModuleActivations(
        module,
        batches if split == "all" else _Part(batches, chosen),
        hook_in,
        hook_out,
        shuffle=train,
        seed=seed,
        epochs=epochs if train or epochs else 1,
    )


class _Part(Sequence[Any]):
    """Some of a sequence's items, looked up when asked for: slicing would load them all."""

    def __init__(self, items: Sequence[Any], chosen: range) -> None:
        self.items, self.chosen = items, chosen

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: Any) -> Any:
        return self.items[self.chosen[index]]


def _call(module: nn.Module, batch: Any) -> None:
    if isinstance(batch, Tensor):
        module(batch)
    elif isinstance(batch, Mapping):
        module(**batch)
    elif isinstance(batch, (tuple, list)):
        module(*batch)
    else:
        raise AdapterError(f"batch is {type(batch).__name__}, expected a tensor, a tuple or a mapping of module inputs")


def _side_by_side(seen: Mapping[str, Tensor], points: tuple[str, ...]) -> Tensor:
    parts = [_rows(seen[point], point) for point in points]
    if any(len(part) != len(parts[0]) for part in parts):
        found = ", ".join(f"{len(part)} at {point!r}" for part, point in zip(parts, points, strict=True))
        raise AdapterError(f"hook points see different numbers of tokens: {found}; expected as many")
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _rows(activation: Tensor, point: str) -> Tensor:
    if activation.ndim < 2 or not activation.is_floating_point():
        raise AdapterError(f"hook point {point!r}: {describe(activation)}, expected floating (…, features)")
    return activation.reshape(-1, activation.shape[-1])


@contextmanager
def _evaluating(module: nn.Module) -> Generator[None]:
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training
