"""Dense acts that are made when somebody looks at them; that latents have fired can be counted without.

Trainers call `acts.bool().float().sum(0)` after every batch, and `sum(-1)` for their logs, which makes three tensors as
large as the acts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ..codes import SparseCodes
from ._acts import dense_acts
from ._later import Later

_COUNTED = {Tensor.bool: torch.bool, Tensor.float: torch.float32}  # of acts; of what `bool` gave


class LaterActs(Later):
    """Dense acts of codes, or others whose active latents were counted when they could be."""

    _counts: Counts
    _fired: bool  # 1 and 0 in place of the acts

    @staticmethod
    def of_codes(
        codes: SparseCodes,
        acts: Callable[[SparseCodes], SparseCodes] | None = None,
        weight: Tensor | None = None,
    ) -> LaterActs:
        """`dense_acts(acts(codes))`. An act is 0 where the codes' value is. `weight`: what `acts` reads."""
        counted = codes.detach()

        def by_latent() -> Tensor:
            fired = counted.indices.flatten()[counted.values.flatten() != 0]
            return torch.bincount(fired, minlength=counted.d_sae).float()

        counts = Counts(by_latent, lambda: counted.l0().float())
        shape = (*codes.lead_shape, codes.d_sae)
        return _later(lambda: dense_acts(codes if acts is None else acts(codes)), shape, codes.values, counts, weight)

    @staticmethod
    def counted(compute: Callable[[], Tensor], weight: Tensor, by_latent: Tensor, by_token: Tensor) -> LaterActs:
        """What `compute()` gives, of `weight`'s dtype, which it reads when it runs."""
        counts = Counts(lambda: by_latent, lambda: by_token)
        return _later(compute, (*by_token.shape, len(by_latent)), weight, counts, weight)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """bool, float of it and sums of that; everything else is asked of the tensor itself."""
        acts = args[0] if args else None
        if isinstance(acts, LaterActs) and acts._made is None and not kwargs:
            if len(args) == 1 and (func is Tensor.bool or (func is Tensor.float and acts._fired)):
                return acts._as_fired(_COUNTED[func])
            if func is Tensor.sum and acts._fired and acts.dtype == torch.float32:
                if acts.dim() == 2 and args[1:] in ((0,), (-2,)):
                    return acts._counts.by_latent()
                if args[1:] == (-1,):
                    return acts._counts.by_token()
        return super().__torch_function__(func, types, args, kwargs)

    def _as_fired(self, dtype: torch.dtype) -> LaterActs:
        like = torch.empty((), dtype=dtype, device=self.device)
        made = _later(lambda: self.now().bool().to(dtype), tuple(self.shape), like, self._counts)
        made._fired = True
        return made


class Counts(NamedTuple):
    """How many tokens each latent fired for, (d_sae,), and how many latents for each token, (…,); float32."""

    by_latent: Callable[[], Tensor]
    by_token: Callable[[], Tensor]


def _later(
    compute: Callable[[], Tensor], shape: tuple[int, ...], like: Tensor, counts: Counts, weight: Tensor | None = None
) -> LaterActs:
    made = cast("LaterActs", Later.of(compute, shape, like, LaterActs, weight))
    made._counts, made._fired = counts, False
    return made
