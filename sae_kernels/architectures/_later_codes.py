"""Codes whose activity is known already, and whose slots are computed only for who looks at them."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..codes import SparseCodes


class LaterCodes(SparseCodes):
    """`fired()` and `l0()` at once; `values`, `indices`, `offsets` when first asked for, with the weights there are,
    and as it would have been when the codes were made: with a gradient, in autocast's dtype.

    Raises:
        RuntimeError: asked for slots after one of the `weights` has changed: they would be codes of another coder.
    """

    def __init__(
        self, make: Callable[[], SparseCodes], d_sae: int, l0: Tensor, fired: Tensor, weights: Sequence[Tensor]
    ) -> None:
        was = [(weight, weight._version) for weight in weights]
        device = l0.device.type
        cast = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        self._set(
            d_sae=d_sae, _make=make, _l0=l0, _fired=fired, _was=was, _cast=cast, _recorded=torch.is_grad_enabled()
        )

    def _set(self, **attributes: Any) -> None:
        for name, value in attributes.items():
            object.__setattr__(self, name, value)  # as SparseCodes are, these are frozen

    @functools.cached_property
    def now(self) -> SparseCodes:
        """The codes themselves."""
        own: Any = self
        if any(weight._version != version for weight, version in own._was):
            raise RuntimeError(
                "codes of a loss that went through the batch in chunks are computed when their slots are looked at, "
                "and the weights have changed since: look before the optimiser's step, or encode again"
            )
        enabled, dtype = own._cast
        with torch.set_grad_enabled(own._recorded), torch.autocast(own._l0.device.type, dtype, enabled):
            return own._make()

    values = property(lambda self: self.now.values)  # pyright: ignore[reportAssignmentType]
    indices = property(lambda self: self.now.indices)  # pyright: ignore[reportAssignmentType]
    offsets = property(lambda self: self.now.offsets)  # pyright: ignore[reportAssignmentType]
    lead = property(lambda self: tuple(self._l0.shape))  # pyright: ignore[reportAssignmentType]

    @property
    def is_ragged(self) -> bool:
        """They are."""
        return True

    @property
    def lead_shape(self) -> tuple[int, ...]:
        """See `SparseCodes`."""
        own: Any = self
        return tuple(own._l0.shape)

    def l0(self) -> Tensor:
        """See `SparseCodes`."""
        own: Any = self
        return own._l0

    def fired(self) -> Tensor:
        """See `SparseCodes`."""
        own: Any = self
        return own._fired.clone()

    def with_values(self, values: Tensor) -> SparseCodes:
        """See `SparseCodes`."""
        return self.now.with_values(values)

    def detach(self) -> SparseCodes:
        """See `SparseCodes`: as late as these."""
        own: Any = self
        if not own._recorded:
            return self
        mine = copy.copy(self)
        if "now" in vars(self):
            mine._set(now=self.now.detach())
        mine._set(_recorded=False)
        return mine

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> SparseCodes:
        """See `SparseCodes`."""
        return self.now.to(device, dtype)

    def __repr__(self) -> str:
        return f"LaterCodes(rows={self.lead_shape}, d_sae={self.d_sae})"
