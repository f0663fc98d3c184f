"""A coder's loss with all of its gradients, on one backend."""

from __future__ import annotations

from torch import Tensor

import sae_kernels as sk


def loss_gradients(
    coder: sk.SparseCoder, backend: str, x: Tensor, target: Tensor | None = None, dead: Tensor | None = None
) -> tuple[Tensor, list[Tensor]]:
    """(loss, a gradient for every parameter)."""
    coder.zero_grad()
    with sk.use(backend):
        loss = coder.loss(x, target, dead=dead).total
    loss.backward()  # outside the block: it keeps to the backend of the forward
    found = [parameter.grad.clone() for parameter in coder.parameters() if parameter.grad is not None]
    assert len(found) == len(list(coder.parameters()))
    return loss.detach(), found
