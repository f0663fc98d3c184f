"""Proof that a step of training never holds anything of (tokens, d_sae) elements, in the kernels neither."""

from __future__ import annotations

from typing import Any

import torch
from torch import _C, Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import sae_kernels as sk
from sae_kernels.kernels import OPS, _kernel, _pre_acts

N, D, M = 1024, 12, 8192  # twice the kernels' largest chunk of scores; every parameter is far smaller
NAMESPACE = "sae_kernels"


class NoDense(TorchDispatchMode):
    """Fails on any tensor, of any dtype, that an operation makes with `n` · `d_sae` or more elements in memory.

    Sees the whole of forward, backward (on the CPU: its thread is this one) and optimiser. Kernels of the package are
    looked into as well: where torch would hand them on as one operation, this runs them by itself, watched. Views
    count with the memory that they have (an expanded scalar is one element), or what they show of it, if that is less.
    `largest` is the largest tensor seen, `seen` the number of operations.

    Kernels may use scratch of a fixed size, that for chunks of scores the largest: n · d_sae must be twice that, or
    the test would blame them. The `reference` is dense, and so may the `dense` backend be, which is chosen by
    estimated time: use it inside `sk.use("cpu")` or `sk.use("triton")`. Parameters must have fewer elements: d < n.
    """

    def __init__(self, n: int, d_sae: int) -> None:
        super().__init__()
        self.limit = n * d_sae
        if self.limit < 2 * _pre_acts.SCORES:
            raise ValueError(f"n * d_sae = {self.limit}, expected at least {2 * _pre_acts.SCORES}")
        self.largest = 0
        self.seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.seen += 1
        if func.namespace == NAMESPACE:
            op = OPS[func._schema.name.removeprefix(f"{NAMESPACE}::")]
            run = _kernel.select(op.name, op._names, args, kwargs.get("backend", ""))
            with torch.autocast(_device(args), enabled=False), _C._AutoDispatchBelowAutograd(), self:
                made = run(*args)
        else:
            made = func(*args, **kwargs)
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.layout == torch.strided:  # torch's sparse ones hold their parts
                held = min(tensor.numel(), tensor.untyped_storage().nbytes() // tensor.itemsize)
                self.largest = max(self.largest, held)
                made_here = f"{func} makes {tuple(tensor.shape)} {tensor.dtype}"
                assert held < self.limit, f"{made_here}: {held} elements, a dense tensor has {self.limit}"
        return made


def _device(args: tuple[Any, ...]) -> str:
    return next(arg.device.type for arg in args if isinstance(arg, Tensor))


def step_without_dense(
    coder: sk.SparseCoder,
    x: Tensor,
    target: Tensor | None = None,
    *,
    dead: Tensor | None = None,
    steps: int = 1,
    autocast: torch.dtype | None = None,
) -> NoDense:
    """Whole steps of training (schedule, loss, backward, Adam, and what stands between) under `NoDense`; → what it saw.

    Every parameter must have got a gradient: a step that skipped the work would prove nothing.
    """
    optimizer = torch.optim.Adam(coder.parameters(), lr=1e-3)
    with NoDense(x.shape[0], coder.d_sae) as watch:
        for step in range(steps):
            optimizer.zero_grad()
            coder.on_step(step, steps)
            with torch.autocast(x.device.type, autocast, enabled=autocast is not None):
                loss = coder.loss(x, target, dead=dead)
            loss.total.backward()
            coder.before_step()
            optimizer.step()
            coder.after_step()
            loss.codes.fired()
            loss.codes.l0()
    without = [name for name, parameter in coder.named_parameters() if parameter.grad is None]
    assert not without, f"no gradient reached {', '.join(without)}"
    assert watch.seen > 20
    return watch
