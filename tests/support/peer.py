"""Other libraries, imported or skipped with the reason; and what a module of theirs does plain and patched."""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

import sae_kernels as sk
from sae_kernels.patches import builtin

os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")  # with Triton installed and no GPU it cannot be imported
D = 12  # of the data
Result = TypeVar("Result")


def peer(module: str, distribution: str) -> ModuleType:
    """A module of another library; skips the test file where that is not installed. Its warnings are its own."""
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        pytest.skip(f"{distribution} is not installed; `make peers` installs it", allow_module_level=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(module)


def plain_and_patched(module: Any, run: Callable[[], Result], **options: Any) -> tuple[Result, Result]:
    """(theirs, mine): what `run` gives while the module is its library's, and while it is patched."""
    theirs = run()
    with sk.patch(module, **options):
        return theirs, run()


def data(*lead: int, dtype: torch.dtype = torch.float64, n: int = 40) -> Tensor:
    """(…, D), or n rows; the same each time."""
    return torch.randn(*(lead or (n,)), D, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def gradients(outs: Tensor | Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Of a weighted sum of the floating `outs`; zeros where nothing arrives."""
    random = torch.Generator().manual_seed(2)
    total = torch.zeros((), dtype=torch.float64)
    for out in [outs] if isinstance(outs, Tensor) else outs:
        if out.is_floating_point() and out.requires_grad:
            total = total + (out * torch.randn(out.shape, generator=random, dtype=torch.float64)).sum()
    grads = torch.autograd.grad(total, inputs, allow_unused=True)
    return [torch.zeros_like(given) if grad is None else grad for grad, given in zip(grads, inputs, strict=True)]


def all_close(mine: Sequence[Tensor], theirs: Sequence[Tensor], names: Sequence[str] = (), **tolerance: Any) -> None:
    """One after the other, of one dtype; what is computed when somebody looks is looked at."""
    for i, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        name = names[i] if i < len(names) else f"result {i}"
        looked_at = +a if a.is_floating_point() else a
        torch.testing.assert_close(looked_at, b, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


def assert_classes_are_listed(name: str, classes: tuple[str, ...]) -> None:
    """What `SAE_KERNELS_PATCH` watches for are the classes that the patch knows, and they are there."""
    (spec,) = [spec for spec in builtin.sae_kernels_patches() if spec.name == name]
    assert spec.classes == classes
    for target in spec.classes:
        module, _, cls = target.partition(":")
        assert hasattr(importlib.import_module(module), cls), target
