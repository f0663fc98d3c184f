"""A tensor that is computed when somebody looks at it.

Host libraries return dense pre-acts beside what their users want, and few ever read them. Whatever torch function is
called with such a tensor gets the real one, which is computed then, once, with its gradients; its shape, dtype and
device are known before. Only an `autograd.Function` of somebody else's, given it directly, would see a tensor without a
history: it is for results that are looked at, not for those that are computed with.

Whoever looks only after weights have changed (a step of the optimiser) gets what the new weights give, and a warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

_TOO_LATE = (
    "sae_kernels: dense acts and pre-acts are computed when they are read; weights have changed since, and "
    "they are of the new ones. Read them before the optimiser's step"
)
_KNOWN = {
    Tensor.shape.__get__,  # pyright: ignore[reportAttributeAccessIssue]
    Tensor.dtype.__get__,  # pyright: ignore[reportAttributeAccessIssue]
    Tensor.device.__get__,  # pyright: ignore[reportAttributeAccessIssue]
    Tensor.ndim.__get__,  # pyright: ignore[reportAttributeAccessIssue]
    Tensor.layout.__get__,  # pyright: ignore[reportAttributeAccessIssue]
    Tensor.is_sparse.__get__,  # pyright: ignore[reportAttributeAccessIssue]
    Tensor.size,
    Tensor.dim,
    Tensor.numel,
    Tensor.is_floating_point,
}


class Later(Tensor):
    """`Later.of(compute, shape, like)`: what `compute()` gives, of that shape and of `like`'s dtype and device."""

    _compute: Callable[[], Tensor] | None
    _made: Tensor | None

    @staticmethod
    def of(
        compute: Callable[[], Tensor],
        shape: tuple[int, ...],
        like: Tensor,
        cls: type[Later] | None = None,
        weight: Tensor | None = None,
    ) -> Later:
        """Nothing is computed yet. Gradients are recorded, or not, as they would be now. `weight`: one of those that
        `compute` reads when it runs."""
        made = Tensor._make_wrapper_subclass(cls or Later, shape, dtype=like.dtype, device=like.device)
        recording, version = torch.is_grad_enabled(), None if weight is None else weight._version

        def as_now() -> Tensor:
            if weight is not None and weight._version != version:
                warnings.warn(_TOO_LATE, RuntimeWarning, stacklevel=4)
            with torch.set_grad_enabled(recording):
                return compute()

        made._compute, made._made = as_now, None
        return made

    def now(self) -> Tensor:
        """The tensor itself."""
        if self._made is None:
            assert self._compute is not None
            self._made, self._compute = self._compute(), None
        return self._made

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Everything but shape, dtype and device is asked of the tensor itself."""
        with torch._C.DisableTorchFunctionSubclass():
            if func in _KNOWN and isinstance(args[0], Later) and args[0]._made is None:
                return func(*args, **(kwargs or {}))
            args, kwargs = tree_map(_real, (args, kwargs or {}))
            return func(*args, **kwargs)  # pyright: ignore[reportCallIssue]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Where a call reaches torch without having been asked: the same."""
        args, kwargs = tree_map(_real, (args, kwargs or {}))
        return func(*args, **kwargs)


def _real(value: Any) -> Any:
    return value.now() if isinstance(value, Later) else value
