"""Which tensors the Triton kernels take."""

from __future__ import annotations

import pytest
import torch

from sae_kernels.kernels import _triton


def test_tensors_of_two_devices_are_declined(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel runs on one GPU; the memory of another is not its own."""
    here, there = torch.zeros(2, device="cpu"), torch.zeros(2, device="meta")
    monkeypatch.setattr(_triton, "on_gpu", lambda tensor: True)
    assert _triton.placed(here, 3, None, [here]) is None
    assert _triton.placed(here, [there]) == "devices differ: cpu and meta"
