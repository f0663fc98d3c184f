"""Codes so full that sparse products do not pay: acts of some tokens as a matrix, in GEMMs, gradients added up aside.

A loss that goes through the batch some tokens at a time (`_by_tokens`) writes those tokens' terms with these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..kernels import _dense
from ._sums import wide


class Full:
    """The products, and what their weights' gradients have come to so far (float32 at least), chunk after chunk: a
    gradient of its own for each chunk would take as much memory again, and the time to write it.

    Inside `torch.autocast` weights are cast to its dtype once for all chunks.
    """

    def __init__(self, device: torch.device) -> None:
        on = torch.is_autocast_enabled(device.type)
        self._dtype = torch.get_autocast_dtype(device.type) if on else None
        self._cast: dict[int, Tensor] = {}
        self._weights: dict[int, Tensor] = {}  # keeps what the ids belong to
        self._sums: dict[int, Tensor] = {}
        self._shared: dict[str, tuple[Tensor, Tensor]] = {}  # what was made, and a leaf in its place

    def pre_acts(self, x: Tensor, W: Tensor, b: Tensor | None, minus: Tensor | None = None) -> Tensor:
        """z = (x − minus) Wᵀ + b: x (n, d_in), W (m, d_in), b (m,), minus (d_in,) → (n, m)."""
        return _PreActs.apply(x, W, b, minus, self)  # pyright: ignore[reportReturnType]

    def decode(self, acts: Tensor, W: Tensor, b: Tensor) -> Tensor:
        """f W + b: acts (n, m), W (m, d_out), b (d_out,) → (n, d_out)."""
        return _Decode.apply(acts, W, b, None, self, False)[0]  # pyright: ignore[reportOptionalSubscript]

    def decode_and_cost(
        self, acts: Tensor, W: Tensor, b: Tensor, cost: Tensor | None, *, frozen: bool = False
    ) -> tuple[Tensor, Tensor]:
        """`decode`, and (1/n) Σ f_i cost_i, cost (m,), 1 if None → 0-d, float32 at least. `frozen`: W and b get no
        gradient. One function, so that the acts' gradient is written once."""
        if cost is None:
            cost = torch.ones(acts.shape[1], dtype=wide(acts.dtype), device=acts.device)
        return _Decode.apply(acts, W, b, cost, self, frozen)  # pyright: ignore[reportReturnType]

    def shared(self, name: str, make: Callable[[], Tensor | None]) -> Tensor | None:
        """What does not depend on tokens, and is differentiated once, after the last chunk: norms of decoder rows."""
        if name not in self._shared:
            made = make()
            if made is None or not made.requires_grad:
                return made
            self._shared[name] = made, made.detach().requires_grad_()
        return self._shared[name][1]

    def leaves(self) -> list[Tensor]:
        """Of what is shared: a chunk's gradients to them are to be handed to `take`."""
        return [leaf for _, leaf in self._shared.values()]

    def take(self, gradients: Sequence[Tensor | None]) -> None:
        """A chunk's gradients to the `leaves`, added up in these."""
        for leaf, gradient in zip(self.leaves(), gradients, strict=True):
            if gradient is not None:
                leaf.grad = gradient.clone() if leaf.grad is None else leaf.grad.add_(gradient)

    def of_shared(self, inputs: Sequence[Tensor]) -> Iterator[Sequence[Tensor | None]]:
        """The gradients to `inputs` through each of what is shared."""
        for made, leaf in self._shared.values():
            if leaf.grad is not None:
                yield torch.autograd.grad(made, inputs, leaf.grad, allow_unused=True)

    def gradient(self, W: Tensor) -> Tensor | None:
        """What has been added up for W, in its dtype; None if nothing was. Hands it over: the next call finds none."""
        total = self._sums.pop(id(W), None)
        return None if total is None else total.to(W.dtype)

    def cast(self, tensor: Tensor) -> Tensor:
        """In autocast's dtype, if there is one; detached."""
        tensor = tensor.detach()
        return tensor if self._dtype is None or tensor.dtype == torch.float64 else tensor.to(self._dtype)

    def cast_once(self, W: Tensor) -> Tensor:
        """`cast` of a weight."""
        if id(W) not in self._cast:
            self._cast[id(W)], self._weights[id(W)] = self.cast(W), W
        return self._cast[id(W)]

    def add(self, W: Tensor, left: Tensor, right: Tensor) -> None:
        """left · right, added to W's gradient."""
        total = self._sums.get(id(W))
        if total is None:
            product = _dense.product(left, right)
            self._sums[id(W)], self._weights[id(W)] = product.to(wide(product.dtype)), W
        elif total.dtype == left.dtype:
            total.addmm_(left, right)
        else:
            total.add_(_dense.product(left, right))


class _PreActs(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, x: Tensor, W: Tensor, b: Tensor | None, minus: Tensor | None, full: Full
    ) -> Tensor:
        inside = full.cast(x if minus is None else x - minus)
        ctx.save_for_backward(inside, W)
        ctx.full = full
        ctx.dtypes = x.dtype, None if b is None else b.dtype, None if minus is None else minus.dtype
        with torch.autocast(x.device.type, enabled=False):
            rows = full.cast_once(W).mT
            return torch.mm(inside, rows) if b is None else torch.addmm(full.cast(b), inside, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        inside, W = ctx.saved_tensors
        of_x, of_b, of_minus = ctx.dtypes
        if ctx.needs_input_grad[1]:
            ctx.full.add(W, dz.mT, inside)
        cast = ctx.full.cast_once(W)
        dx = torch.mm(dz, cast).to(of_x) if ctx.needs_input_grad[0] else None
        sums = dz.sum(0, dtype=wide(dz.dtype)) if any(ctx.needs_input_grad[2:4]) else None
        db = sums.to(of_b) if sums is not None and ctx.needs_input_grad[2] else None
        d_minus = -(sums.to(cast.dtype) @ cast).to(of_minus) if sums is not None and ctx.needs_input_grad[3] else None
        return dx, None, db, d_minus, None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, acts: Tensor, W: Tensor, b: Tensor, cost: Tensor | None, full: Full, frozen: bool
    ) -> tuple[Tensor, Tensor | None]:
        sums = None if cost is None else acts.sum(0, dtype=cost.dtype).div_(max(1, len(acts)))
        ctx.of_acts, acts = acts.dtype, full.cast(acts)
        ctx.save_for_backward(acts if ctx.needs_input_grad[1] and not frozen else None, W, cost, sums)
        ctx.full, ctx.frozen, ctx.of_b, ctx.n = full, frozen, b.dtype, max(1, len(acts))
        with torch.autocast(acts.device.type, enabled=False):
            y = torch.addmm(full.cast(b), acts, full.cast_once(W))
            return y, None if sums is None or cost is None else sums @ cost

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dy: Tensor, d_cost: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        acts, W, cost, sums = ctx.saved_tensors
        if acts is not None:
            ctx.full.add(W, acts.mT, dy)
        columns = ctx.full.cast_once(W).mT
        if cost is None or d_cost is None:
            d_acts = torch.mm(dy, columns)
        else:
            d_acts = torch.addmm((d_cost / ctx.n * cost).to(dy.dtype), dy, columns)
        wants_b = ctx.needs_input_grad[2] and not ctx.frozen
        db = dy.sum(0, dtype=wide(dy.dtype)).to(ctx.of_b) if wants_b else None
        d_costs = d_cost * sums if ctx.needs_input_grad[3] and d_cost is not None else None
        return d_acts.to(ctx.of_acts), None, db, d_costs, None, None


def relu_(z: Tensor) -> Tensor:
    """ReLU, in place. Nothing but one `decode` may have the result: its gradient is overwritten, too."""
    return _ReLU.apply(z)  # pyright: ignore[reportReturnType]


class _ReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        z.relu_()
        ctx.mark_dirty(z)
        ctx.save_for_backward(z)
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (acts,) = ctx.saved_tensors
        return where_positive_(grad, acts)


def where_positive_(grad: Tensor, acts: Tensor) -> Tensor:
    """grad · 1[acts > 0], in place."""
    return torch.ops.aten.threshold_backward.grad_input(grad, acts, 0, grad_input=grad)
