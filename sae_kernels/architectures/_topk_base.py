"""What the top-k family shares: parameters, the loss with AuxK, unit norm, folding."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..codes import SparseCodes
from ..ops import Selection, TopK, encode
from ._affine import Affine, fold_autoencoder, fold_decoder, fold_encoder, rescale_latents
from ._base import Loss
from ._centre import centre_pre_acts
from ._k_schedule import KConfig, KScheduled
from ._rows import unit_rows
from ._topk_loss import auxk

INITIAL_NORM = 0.5  # of the rows of W_enc


@dataclass(frozen=True)
class TopKBaseConfig(KConfig):
    """As `KConfig`; `k_aux` dead latents fit the residual (None: d_in / 2, at most d_sae), weighted by
    `auxk_coefficient` (0: off); `normalize_decoder` keeps the rows of W_dec at norm 1; `subtract_b_dec`: the encoder
    reads x − b_dec."""

    k_aux: int | None = None
    auxk_coefficient: float = 1 / 32
    normalize_decoder: bool = True
    subtract_b_dec: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k_aux is not None:
            self.require_k("k_aux")
        self.require_not_negative("auxk_coefficient")
        self.require_bool("normalize_decoder")
        self.require_bool("subtract_b_dec")

    @property
    def aux_width(self) -> int:
        """k_aux with its default filled in."""
        return self.k_aux if self.k_aux is not None else max(1, min(self.d_in // 2, self.d_sae))


class TopKBase(KScheduled):
    """A subclass says which latents training keeps (`selections`) and how well they fit (`fidelity`); AuxK is added.

    AuxK: α · Σ‖e − ê‖² / Σ‖y − ȳ‖², where e = y − ŷ is the residual of the reconstruction (no gradient),
    ê = f_dead W_dec (no bias), and f_dead are the top k_aux latents among the dead. Source: arXiv 2406.04093.

    At the start: unit rows in random directions in W_dec, the same at norm 1/2 in W_enc. The latents a token selects
    all point its way, and with both at norm 1 they sum to more than it: short runs end with 5 % more FVU
    (bench/QUALITY.md).
    """

    config: Any

    def __init__(self, config: TopKBaseConfig) -> None:
        super().__init__(config)
        directions = unit_rows(torch.randn(config.d_sae, config.d_in))
        self.W_enc = nn.Parameter(INITIAL_NORM * directions)
        self.b_enc = nn.Parameter(torch.zeros(config.d_sae))
        self.W_dec = nn.Parameter(self._initial_decoder(directions))
        self.b_dec = nn.Parameter(torch.zeros(config.d_out))
        self.unit_norm_rows = ("W_dec",) if config.normalize_decoder else ()

    def _initial_decoder(self, directions: Tensor) -> Tensor:
        """The encoder's directions, at norm 1."""
        return directions.clone()

    def encoder_input(self, x: Tensor) -> Tensor:
        """What W_enc is applied to: the input with the decoder's bias taken off, unless `subtract_b_dec` says no."""
        x = self.check_input(x)
        return x - self.b_dec if self.config.subtract_b_dec else x

    @torch.no_grad()
    def initialise(self, x: Tensor, target: Tensor) -> None:
        """b_dec, and b_enc to match."""
        super().initialise(x, target)
        self._centre_encoder(x)

    def _centre_encoder(self, x: Tensor) -> None:
        """An encoder that reads x itself begins as one that reads x − b_dec."""
        if not self.config.subtract_b_dec:
            centre_pre_acts(self.W_enc, self.b_enc, self.b_dec)

    def selections(self) -> tuple[Selection, ...]:
        """What training keeps of the pre-acts; the codes of the first are the batch's codes."""
        raise NotImplementedError(f"{type(self).__name__} must define selections")

    def fidelity(
        self, codes: tuple[SparseCodes, ...], x: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """(the reconstruction of the target, the loss without AuxK, its terms) from the codes of the `selections`."""
        raise NotImplementedError(f"{type(self).__name__} must define fidelity")

    def loss(self, x: Tensor, target: Tensor | None = None, *, dead: Tensor | None = None) -> Loss:
        """See the class. It selects latents itself, for all terms at once: a subclass with another `encode` has its own
        `selections`. With `dead` None or all False there is no AuxK term, `auxk`."""
        target = self.check_target(x, target)
        inside, wanted = self.encoder_input(x), self.selections()
        aux = None
        if self.config.auxk_coefficient == 0 or dead is None or not bool(dead.any()):
            codes = encode(inside, self.W_enc, self.b_enc, wanted)
        elif any(isinstance(each, TopK) for each in wanted):  # one pass over the pre-acts serves all
            *kept, aux = encode(inside, self.W_enc, self.b_enc, (*wanted, TopK(self.config.aux_width, among=dead)))
            codes = tuple(kept)
        else:
            codes = encode(inside, self.W_enc, self.b_enc, wanted)
            aux = self._among(dead, inside)
        reconstruction, total, parts = self.fidelity(codes, x, target)
        if aux is not None:
            extra = auxk(aux, self.W_dec, reconstruction, target)
            total = total + self.config.auxk_coefficient * extra
            parts = {**parts, "auxk": extra}
        return Loss(total, {name: term.detach() for name, term in parts.items()}, codes[0], reconstruction)

    def _among(self, dead: Tensor, inside: Tensor) -> SparseCodes:
        """The top k_aux of the dead latents by the pre-acts of these alone: their share of a pass over all of them."""
        latents = dead.nonzero().squeeze(1)
        W, b = self.W_enc.index_select(0, latents), self.b_enc.index_select(0, latents)
        codes = encode(inside, W, b, TopK(min(self.config.aux_width, len(latents))))
        return SparseCodes(codes.values, latents.int().take(codes.indices.long()), self.d_sae)

    def fold(self, input: Affine, target: Affine) -> None:
        """See `SparseCoder.fold`."""
        if self.config.subtract_b_dec:
            fold_autoencoder(self.W_enc, self.W_dec, self.b_dec, input)
        else:
            fold_encoder(self.W_enc, self.b_enc, input)
            fold_decoder(self.W_dec, self.b_dec, target)
        if scale := input.common_scale():
            rescale_latents(1 / scale, self.linear_in_latents(), self.W_dec)

    def linear_in_latents(self) -> tuple[Tensor, ...]:
        """The encoder's tensors that pre-acts are linear in, for `rescale_latents`."""
        return self.W_enc, self.b_enc
