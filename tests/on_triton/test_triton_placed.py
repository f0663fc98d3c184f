"""Which tensors the Triton kernels take."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sae_kernels.kernels import _triton


def test_tensors_of_two_devices_are_declined(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel runs on one GPU; the memory of another is not its own."""
    here, there = torch.zeros(2, device="cpu"), torch.zeros(2, device="meta")
    monkeypatch.setattr(_triton, "on_gpu", lambda tensor: True)
    assert _triton.placed(here, 3, None, [here]) is None
    assert _triton.placed(here, [there]) == "devices differ: cpu and meta"


def test_learning_rates_may_lie_on_the_host() -> None:
    """They are few, and made there."""
    with FakeTensorMode():
        matrix = torch.empty(4, 3, device="cuda")
        rates = torch.empty(5, dtype=torch.float64)
        args = (matrix, matrix, matrix, matrix, None, None, rates, 2, 0.9, 0.999, 1e-8, False, False)
        assert _triton.declines("adam_rows")(*args) is None
        assert _triton.declines("adam_rows")(matrix, rates, *args[2:]) == "devices differ: cuda:0 and cpu"
