"""What a library's coder must do to be trained and measured here."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

Scale = Literal["sqrt_d", "unit", "none"]


class Trainee(Protocol):
    """A coder, its optimiser, and a step as its library takes it."""

    scale: Scale  # of its inputs and targets, see `rows.scaled`

    def step(self, step: int, x: Tensor, y: Tensor, dead: Tensor) -> Tensor:
        """Loss, gradients, optimiser, in step 0, 1, …; → bool (d_sae,), who fired."""
        ...

    def infer(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(active latents a token, reconstruction), as the saved coder gives them."""
        ...


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Of every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def member(latents: Tensor, d_sae: int) -> Tensor:
    """bool (d_sae,) of latents (n,)."""
    mask = torch.zeros(d_sae, dtype=torch.bool)
    mask[latents.long()] = True
    return mask
