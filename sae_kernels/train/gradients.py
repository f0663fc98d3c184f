"""How long a step's gradients are, all together, and how long they may be."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

ALWAYS = "always"  # `grad_clip`: to norm 1 in every step
LEAST_NORM = 1e-30  # of what is scaled up to 1


def clip(parameters: Iterable[nn.Parameter], grad_clip: float | str | None) -> Tensor:
    """Scale the gradients as `grad_clip` says; → their norm before, 0-d. Where that is not finite, they are not either.

    "always": to norm 1. Adam's steps are those of any other scale then, if all of them have it; what changes is that
    gradients which fall during training do not shrink its steps, as its denominators remember the longer ones of 1/(1 −
    β₂) steps before, and that a long one does not shrink those that follow. A number: down to it where they are longer.
    None: not at all.
    """
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(grads)
    if grad_clip is None:
        return norm
    largest = 1.0 if grad_clip == ALWAYS else float(grad_clip)
    scale = largest / norm.clamp_min(LEAST_NORM)
    if grad_clip != ALWAYS:
        scale = scale.clamp_max(1.0)
    for grad in grads:
        grad.mul_(scale)
    return norm
