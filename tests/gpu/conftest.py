"""A GPU, or a skip; what a test leaves there is freed."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def gpu() -> Iterator[None]:
    """Tensors are made on the GPU."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    with torch.device("cuda"):
        yield
    gc.collect()
    torch.cuda.empty_cache()
