"""What foreign weight files hold, and what their hosts compute: dense arithmetic in float64, written here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import sae_kernels as sk
from bench import cases

D, D_OUT, N, K, ROWS = 12, 9, 40, 5, 64
Raw = dict[str, Tensor]


def raw(*shapes: tuple[str, tuple[int, ...]]) -> Raw:
    """Tensors that no initialisation has; thresholds are positive."""
    made = {name: cases.normal(*shape, seed=50 + i, scale=0.4) for i, (name, shape) in enumerate(shapes)}
    return {name: t.abs() if "thresh" in name else t for name, t in made.items()}


def x_rows(n: int = ROWS, d: int = D) -> Tensor:
    return cases.normal(n, d, seed=3)


def top(z: Tensor, k: int) -> Tensor:
    values, indices = z.topk(k, dim=-1)
    return torch.zeros_like(z).scatter_(-1, indices, values)


def same(coder: sk.SparseCoder, x: Tensor, acts: Tensor, out: Tensor) -> None:
    """Codes and reconstruction are the host's."""
    codes = coder.encode(x).dense().detach().double()
    torch.testing.assert_close(codes, acts.double(), atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(coder(x).detach().double(), out.double(), atol=5e-5, rtol=5e-5)
    assert not coder.training
    assert all(p.requires_grad for p in coder.parameters())


def written(folder: Path, config: dict[str, Any] | None, tensors: Raw, names: tuple[str, str]) -> Path:
    """A folder of a configuration and a safetensors file."""
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (folder / names[0]).write_text(json.dumps(config))
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / names[1])
    return folder
