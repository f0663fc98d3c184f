"""Dense acts that are made when somebody looks at them; that latents have fired can be counted without.

Trainers call `acts.bool().float().sum(0)` after every batch, which makes three tensors as large as the acts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from ..codes import SparseCodes
from ._acts import dense_acts
from ._later import Later

_COUNTED = {Tensor.bool: torch.bool, Tensor.float: torch.float32}  # of acts; of what `bool` gave


class LaterActs(Later):
    """`LaterActs.of_codes(codes, acts)`: `dense_acts(acts(codes))`. An act is 0 where the codes' value is."""

    _codes: SparseCodes
    _fired: bool  # 1 and 0 in place of the acts

    @staticmethod
    def of_codes(codes: SparseCodes, acts: Callable[[SparseCodes], SparseCodes]) -> LaterActs:
        """Nothing is computed yet."""
        made = Later.of(lambda: dense_acts(acts(codes)), (*codes.lead_shape, codes.d_sae), codes.values, LaterActs)
        made = cast("LaterActs", made)
        made._codes, made._fired = codes.detach(), False
        return made

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """bool, float of it and sum over tokens of that; everything else is asked of the tensor itself."""
        acts = args[0] if args else None
        if isinstance(acts, LaterActs) and acts._made is None and not kwargs:
            if len(args) == 1 and (func is Tensor.bool or (func is Tensor.float and acts._fired)):
                return acts._as_fired(_COUNTED[func])
            if func is Tensor.sum and acts._sums_tokens(args[1:]):
                return acts._counts()
        return super().__torch_function__(func, types, args, kwargs)

    def _as_fired(self, dtype: torch.dtype) -> LaterActs:
        codes = self._codes
        like = codes.values.new_empty((), dtype=dtype)
        made = Later.of(lambda: self.now().bool().to(dtype), (*codes.lead_shape, codes.d_sae), like, LaterActs)
        made = cast("LaterActs", made)
        made._codes, made._fired = codes, True
        return made

    def _sums_tokens(self, args: tuple[Any, ...]) -> bool:
        return self._fired and self.dtype == torch.float32 and self.dim() == 2 and args in ((0,), (-2,))

    def _counts(self) -> Tensor:
        """(d_sae,) float32: how many tokens each latent fired for."""
        codes = self._codes
        fired = codes.indices.flatten()[codes.values.flatten() != 0]
        return torch.bincount(fired, minlength=codes.d_sae).float()
