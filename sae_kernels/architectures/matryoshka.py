"""`matryoshka`: the Matryoshka sparse autoencoder, BatchTopK codes whose prefixes reconstruct on their own."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from ..codes import SparseCodes
from ..errors import ConfigError
from ..ops import prefix_decode
from ._base import CoderConfig
from ._topk_loss import fvus
from .batch_topk import BatchTopKCoder, BatchTopKConfig

DEFAULT_ENDS = (1, 3, 7, 15, 32)  # in 32nds of d_sae: the paper's 2048, 6144, 14336, 30720, 65536


@dataclass(frozen=True)
class MatryoshkaConfig(BatchTopKConfig):
    """As `BatchTopKConfig`; `prefixes` are the nested dictionaries' sizes, rising up to d_sae (None: 1, 3, 7, 15 and 32
    32nds of d_sae, as in the paper)."""

    prefixes: tuple[int, ...] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prefixes is None:
            return
        if not isinstance(self.prefixes, (list, tuple)):
            raise ConfigError(f"prefixes = {self.prefixes!r}, expected a list of integers that rise up to d_sae")
        object.__setattr__(self, "prefixes", tuple(self.prefixes))  # files hold lists
        for prefix in self.prefixes:
            if isinstance(prefix, bool) or not isinstance(prefix, int) or prefix < 1:
                raise ConfigError(f"prefixes = {list(self.prefixes)}, expected positive integers, found {prefix!r}")
        for before, prefix in itertools.pairwise(self.prefixes):
            if before >= prefix:
                raise ConfigError(
                    f"prefixes = {list(self.prefixes)}, expected strictly rising, found {prefix} after {before}"
                )
        if self.prefixes[-1:] != (self.d_sae,):
            raise ConfigError(f"prefixes = {list(self.prefixes)}, expected the last to be d_sae = {self.d_sae}")

    @property
    def ends(self) -> tuple[int, ...]:
        """The prefixes with their default filled in."""
        if self.prefixes is not None:
            return self.prefixes
        return tuple(sorted({max(1, self.d_sae * part // DEFAULT_ENDS[-1]) for part in DEFAULT_ENDS}))


class MatryoshkaCoder(BatchTopKCoder):
    """f as in `batch_topk`, threshold and all;  x̂_m = f_{:m} W_dec[:m] + b_dec for every prefix m;  x̂ = x̂_{d_sae}.

    loss = Σ_m Σ‖x − x̂_m‖² / Σ‖x − x̄‖² + α · AuxK: the paper's sum over prefixes, each as the batch's FVU (where it has
    squared errors, for the reason given in `batch_topk`), and AuxK as in `TopKBase` on the residual of x̂. Terms: `fvu`
    (of x̂), `fvu_m` of each smaller prefix, `auxk` (unweighted).

    One pass over the codes makes all reconstructions, and one their gradients. Memory: a few float tensors (P, N, d_in)
    for P prefixes.

    Source: arXiv 2503.17547.
    """

    Config: ClassVar[type[CoderConfig]] = MatryoshkaConfig
    architecture: ClassVar[str] = "matryoshka"
    config: MatryoshkaConfig  # pyright: ignore[reportIncompatibleVariableOverride]  (set once, never reassigned)

    def fidelity(
        self, codes: tuple[SparseCodes, ...], x: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The sum of the prefixes' FVUs."""
        ends = self.config.ends
        nested = prefix_decode(codes[0], self.W_dec, self.b_dec, ends)
        each = fvus(nested, target)
        names = [*(f"fvu_{end}" for end in ends[:-1]), "fvu"]
        return nested[-1], each.sum(), dict(zip(names, each.unbind(), strict=True))
