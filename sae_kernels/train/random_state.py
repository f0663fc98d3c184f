"""The global random states: seeded for a run, kept in its checkpoints, given back afterwards."""

from __future__ import annotations

import base64
import random
from typing import Any

import numpy
import torch
from torch import Tensor


class Own:
    """Random states of one's own, which depend on `seed` and on what was drawn inside alone:

    own = Own(3)
    with own: torch.rand(1)
    with own: torch.rand(1)  # goes on
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self._states: list[Any] | None = None
        self._outside: list[Any] = []

    def __enter__(self) -> None:
        self._outside.append(_current())
        if self._states is None:
            torch.manual_seed(self.seed)
            numpy.random.seed(self.seed % 2**32)
            random.seed(self.seed)
        else:
            _set(self._states)

    def __exit__(self, *_: object) -> None:
        self._states = _current()
        _set(self._outside.pop())


def _current() -> list[Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    return [torch.get_rng_state(), numpy.random.get_state(), random.getstate(), cuda]


def _set(states: list[Any]) -> None:
    torch.set_rng_state(states[0])
    numpy.random.set_state(states[1])
    random.setstate(states[2])
    if states[3] is not None:
        torch.cuda.set_rng_state_all(states[3])


def capture() -> dict[str, Any]:
    """The states of torch (CPU, and CUDA if it is in use), NumPy and Python, as JSON can hold them."""
    name, keys, *rest = numpy.random.get_state()
    state: dict[str, Any] = {
        "torch": _text(torch.get_rng_state()),
        "numpy": [name, keys.tolist(), *rest],  # pyright: ignore[reportAttributeAccessIssue]
        "python": random.getstate(),
    }
    if torch.cuda.is_initialized():
        state["cuda"] = [_text(each) for each in torch.cuda.get_rng_state_all()]
    return state


def restore(state: dict[str, Any]) -> None:
    """Set what `capture` returned, also after a trip through JSON."""
    torch.set_rng_state(_tensor(state["torch"]))
    name, keys, *rest = state["numpy"]
    numpy.random.set_state((name, numpy.array(keys, dtype=numpy.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if "cuda" in state and torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([_tensor(each) for each in state["cuda"]])


def _text(state: Tensor) -> str:
    return base64.b64encode(state.cpu().numpy().tobytes()).decode("ascii")


def _tensor(text: str) -> Tensor:
    return torch.tensor(list(base64.b64decode(text)), dtype=torch.uint8)
