"""A forward pass of a model as it is, before every one in which it is steered."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import AdapterError
from .hook_points import capture, hide_since, is_hidden, mark

Take = Callable[[dict[str, Tensor]], None]
CACHE = "past_key_values"  # what transformers' models call it, as an argument and in their output


@contextmanager
def read_ahead(model: nn.Module, points: Iterable[str], take: Take) -> Generator[None]:
    """Within the block, each forward pass of the whole model comes after another one with the same arguments, in which
    nothing that was entered in the block (`capture`, `intervene`, `read_ahead`) has an effect. `take` gets what passed
    the points in that pass, (…, tokens, d) each, without gradient.

    A pass that goes on from a key-value cache is read ahead from a cache of its own, which holds what the model would
    have kept of the same tokens without the block.

    Raises (on running):
        AdapterError: a pass goes on from a cache that was made before the block; or as `capture`.
    """
    points, number = list(points), mark()
    caches: dict[int, tuple[Any, Any]] = {}  # of a cache's id: itself, and the one to read ahead with
    ahead: list[Any] = []  # caches of passes that have begun: one may stand inside another, where blocks are nested

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if is_hidden(number):
            return
        own, past = dict(kwargs), kwargs.get(CACHE)
        if past is not None:
            if id(past) not in caches:
                raise AdapterError("a forward pass goes on from a cache that was made before the model was steered")
            own[CACHE] = caches[id(past)][1]
        made = None
        with torch.no_grad(), hide_since(number), capture(model, points, stop_early=not _keeps(kwargs)) as seen:
            made = _cache(model(*args, **own))
        if made is not None:
            ahead.append(made)
        take(seen)

    def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        made = _cache(output)
        if not is_hidden(number) and made is not None and ahead:
            caches[id(made)] = made, ahead.pop()

    handles = model.register_forward_pre_hook(before, with_kwargs=True), model.register_forward_hook(after)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _keeps(kwargs: dict[str, Any]) -> bool:
    """Whether a cache may be asked for."""
    return kwargs.get("use_cache") is not False


def _cache(output: Any) -> Any:
    if isinstance(output, dict):
        return output.get(CACHE)
    return getattr(output, CACHE, None)
