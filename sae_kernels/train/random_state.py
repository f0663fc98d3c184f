"""The global random states: seeded for a run, kept in its checkpoints, given back afterwards."""

from __future__ import annotations

import base64
import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy
import torch
from torch import Tensor


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside the block the states depend on `seed` alone; then they are as before."""
    before = capture()
    torch.manual_seed(seed)
    numpy.random.seed(seed % 2**32)
    random.seed(seed)
    try:
        yield
    finally:
        restore(before)


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
