"""`gated`: the Gated sparse autoencoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .. import settings
from ..codes import SparseCodes
from ..ops import Threshold, decode, encode
from ._affine import Affine, fold_autoencoder, fold_decoder, fold_encoder, rescale_latents
from ._base import CoderConfig
from ._by_tokens import ByTokens, Encoder, Parts, Terms
from ._density import DensityConfig, bias_of_density
from ._full import Full, where_positive_
from ._penalty import Penalised, PenaltyConfig
from ._rows import unit_rows
from ._slots import at_slots, latent_sums
from ._sums import l1, row_norms, squared_error, wide

INITIAL_NORM = 0.1  # of the rows of W_enc


@dataclass(frozen=True)
class GatedConfig(DensityConfig, PenaltyConfig):
    """`normalize_decoder` keeps the rows of W_dec at norm 1, as the paper has it; without, the penalty counts each
    gate with ‖d_i‖. `subtract_b_dec`: the encoder reads x − b_dec. `freeze_auxiliary`: the auxiliary term decodes with
    copies of W_dec and b_dec that get no gradient, as the paper has it; without, it trains both, as in SAELens."""

    normalize_decoder: bool = True
    subtract_b_dec: bool = True
    freeze_auxiliary: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_bool("normalize_decoder")
        self.require_bool("subtract_b_dec")
        self.require_bool("freeze_auxiliary")


class GatedCoder(ByTokens, Penalised):
    """h = W_enc (x − b_dec);  π = h + b_gate;  f = 1[π > 0] · ReLU(e^{r_mag} ⊙ h + b_mag);  x̂ = f W_dec + b_dec.

    loss: the mean over tokens of ‖x − x̂‖² + λ Σ_i ReLU(π_i) ‖d_i‖ + ‖x − x̂_frozen(ReLU(π))‖², where ‖d_i‖ = 1 with
    `normalize_decoder` and x̂_frozen decodes with copies of W_dec and b_dec that get no gradient (with
    `freeze_auxiliary = false`: with W_dec and b_dec, whose gradients it adds to). λ is `sparsity_coefficient`. Terms:
    `mse`, `l1` (without λ), `auxiliary`.

    The gate decides with π, one pass over x W_encᵀ; the magnitude of a latent it lets through comes from the same
    number, h = π − b_gate.

    Gradients: the step passes none, so the first term trains r_mag, b_mag, W_dec and, through the magnitude, W_enc and
    b_dec; b_gate is trained by the other two alone, W_dec by the first alone (and the norms in the second, if they are
    free; and the third, if it is not frozen). As in the paper's code it is the decoder that is frozen: b_dec still
    gets their gradient from where W_enc reads x − b_dec.

    At the start: unit rows in random directions in W_dec, the same at norm 0.1 in W_enc; r_mag = 0, and b_gate = b_mag
    such that each gate is open on a share `initial_density` of the first batch (see `bias_of_density`).

    Memory: 8 bytes for each latent whose gate is open and 4 more for π; at the peak of a step, in the backward, about
    36. Where many gates are open, the batch goes through in chunks, in GEMMs where these are faster (see `ByTokens`),
    six matrices of a chunk at a time.

    Source: arXiv 2404.16014.
    """

    Config: ClassVar[type[CoderConfig]] = GatedConfig
    architecture: ClassVar[str] = "gated"
    config: GatedConfig

    def __init__(self, config: GatedConfig) -> None:
        super().__init__(config)
        if config.normalize_decoder:
            self.unit_norm_rows = ("W_dec",)
        rows = unit_rows(torch.randn(config.d_sae, config.d_in))
        self.W_enc = nn.Parameter(INITIAL_NORM * rows)
        self.b_gate = nn.Parameter(torch.zeros(config.d_sae))
        self.r_mag = nn.Parameter(torch.zeros(config.d_sae))
        self.b_mag = nn.Parameter(torch.zeros(config.d_sae))
        self.W_dec = nn.Parameter(rows)
        self.b_dec = nn.Parameter(torch.zeros(config.d_in))

    def encoder_input(self, x: Tensor) -> Tensor:
        """What W_enc is applied to: the input with the decoder's bias taken off, unless `subtract_b_dec` says no."""
        x = self.check_input(x)
        return x if (minus := self._minus()) is None else x - minus

    @torch.no_grad()
    def initialise(self, x: Tensor, target: Tensor) -> None:
        """b_dec, and the biases to match."""
        super().initialise(x, target)
        self.b_gate.copy_(bias_of_density(x, self.W_enc, self.config.initial_density, self._minus()))
        self.b_mag.copy_(self.b_gate)

    def encode(self, x: Tensor) -> SparseCodes:
        """x (…, d_in) → ragged codes of the open gates; where the magnitude is 0 the slot is empty."""
        return self._magnitudes(self._gates(x))

    def _gates(self, x: Tensor) -> SparseCodes:
        """π where it is positive, with no gradient to b_gate: the magnitudes must send it none."""
        return encode(self.encoder_input(x), self.W_enc, self.b_gate.detach(), Threshold(0.0))

    def _magnitudes(self, gates: SparseCodes) -> SparseCodes:
        args = gates.values, self.r_mag, self.b_mag, self.b_gate.detach(), gates.indices, gates.offsets, gates.n_rows
        return gates.with_values(_Magnitudes.apply(*args, settings.chosen_backend()))

    def terms(self, x: Tensor, target: Tensor) -> Terms:
        """See `ByTokens`."""
        gates = self._gates(x)
        codes = self._magnitudes(gates)
        reconstruction = self.reconstruct(codes, x)
        bias = self.b_gate.to(wide(self.b_gate.dtype))
        pi = gates.with_values(gates.values + at_slots(bias - bias.detach(), gates))  # adds 0, and b_gate's gradient
        penalty = l1(pi, self._norms())
        pi = pi.with_values(pi.values.to(gates.values.dtype))
        decoder: tuple[Tensor, Tensor] = self.W_dec, self.b_dec
        if self.config.freeze_auxiliary:
            decoder = self.W_dec.detach(), self.b_dec.detach()
        auxiliary = squared_error(decode(pi, *decoder), target)
        parts = {"mse": squared_error(reconstruction, target), "l1": penalty, "auxiliary": auxiliary}
        return Terms(parts, codes, reconstruction)

    def full_terms(self, x: Tensor, target: Tensor, full: Full) -> Terms:
        """See `ByTokens`."""
        h = full.pre_acts(x, self.W_enc, None, self._minus())
        acts, gates = _FullGates.apply(h, self.r_mag, self.b_mag, self.b_gate)  # pyright: ignore[reportGeneralTypeIssues]
        del h
        norms = full.shared("norms", self._norms)
        reconstruction = full.decode(acts, self.W_dec, self.b_dec)
        frozen = self.config.freeze_auxiliary
        by_gates, penalty = full.decode_and_cost(gates, self.W_dec, self.b_dec, norms, frozen=frozen)
        auxiliary = squared_error(by_gates, target)
        parts = {"mse": squared_error(reconstruction, target), "l1": penalty, "auxiliary": auxiliary}
        return Terms(parts, acts, reconstruction)

    def combined(self, parts: Parts) -> Tensor:
        """‖x − x̂‖² + λ Σ ReLU(π_i) ‖d_i‖ + ‖x − x̂_frozen‖²."""
        return parts["mse"] + self.sparsity * parts["l1"] + parts["auxiliary"]

    def encoders(self, x: Tensor) -> list[Encoder]:
        """See `ByTokens`."""
        return [Encoder(x, self.W_enc, self.b_gate, minus=self._minus())]

    def _norms(self) -> Tensor | None:
        return None if self.config.normalize_decoder else row_norms(self.W_dec)

    def _minus(self) -> Tensor | None:
        return self.b_dec if self.config.subtract_b_dec else None

    def fold(self, input: Affine, target: Affine) -> None:
        """See `SparseCoder.fold`."""
        if self.config.subtract_b_dec:
            fold_autoencoder(self.W_enc, self.W_dec, self.b_dec, input)
        else:
            fold_encoder(self.W_enc, self.b_gate, input)
            with torch.no_grad():
                shift = self.W_enc.double() @ input.to(self.W_enc).mean.double()
                self.b_mag.sub_((self.r_mag.double().exp() * shift).to(self.b_mag.dtype))
            fold_decoder(self.W_dec, self.b_dec, target)
        if scale := input.common_scale():
            rescale_latents(1 / scale, (self.W_enc, self.b_gate, self.b_mag), self.W_dec)


class _Magnitudes(torch.autograd.Function):
    """f = ReLU(e^{r_mag} (π − b_gate) + b_mag) at the slots of π, in float32 at least; keeps nothing but π for the
    backward, which computes the rest again."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        pi: Tensor,
        r_mag: Tensor,
        b_mag: Tensor,
        b_gate: Tensor,
        indices: Tensor,
        offsets: Tensor | None,
        n: int,
        backend: str,
    ) -> Tensor:
        ctx.save_for_backward(pi, r_mag, b_mag, b_gate, indices, offsets)
        ctx.rest = n, len(r_mag), backend
        h, gain = _linear_and_gain(pi, r_mag, b_gate, indices)
        return h.mul_(gain).add_(_at(b_mag, indices, h.dtype)).relu_().to(pi.dtype)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        pi, r_mag, b_mag, b_gate, indices, offsets = ctx.saved_tensors
        h, gain = _linear_and_gain(pi, r_mag, b_gate, indices)
        h.mul_(gain)
        d = torch.where(h + _at(b_mag, indices, h.dtype) > 0, grad.to(h.dtype), 0)
        d_b_mag = latent_sums(d, indices, offsets, *ctx.rest).to(b_mag.dtype)
        d_r_mag = latent_sums(h.mul_(d), indices, offsets, *ctx.rest).to(r_mag.dtype)
        return d.mul_(gain).to(pi.dtype), d_r_mag, d_b_mag, None, None, None, None, None


class _FullGates(torch.autograd.Function):
    """f and ReLU(π) of a matrix h, in its dtype. Each may go into one `decode` and nothing else: their gradients are
    overwritten."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, h: Tensor, r_mag: Tensor, b_mag: Tensor, b_gate: Tensor
    ) -> tuple[Tensor, Tensor]:
        dtype = wide(h.dtype)
        gates = (h + b_gate.to(dtype)).relu_()
        acts = torch.addcmul(b_mag.to(dtype), h.to(dtype), r_mag.to(dtype).exp()).relu_()
        acts.masked_fill_(gates == 0, 0)
        acts, gates = acts.to(h.dtype), gates.to(h.dtype)
        ctx.save_for_backward(h, acts, gates, r_mag)
        ctx.dtypes = b_mag.dtype, b_gate.dtype
        return acts, gates

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, d_acts: Tensor, d_gates: Tensor
    ) -> tuple[Tensor | None, ...]:
        h, acts, gates, r_mag = ctx.saved_tensors
        dtype = wide(h.dtype)
        of_b_mag, of_b_gate = ctx.dtypes
        where_positive_(d_acts, acts)
        dh = where_positive_(d_gates, gates).to(dtype)
        d_b_gate = dh.sum(0).to(of_b_gate)
        d_b_mag = d_acts.sum(0, dtype=dtype).to(of_b_mag)
        gain = r_mag.to(dtype).exp()
        d_acts = d_acts.to(dtype)
        dh.addcmul_(d_acts, gain)
        d_r_mag = (d_acts.mul_(h).sum(0) * gain).to(r_mag.dtype)
        return dh.to(h.dtype), d_r_mag, d_b_mag, d_b_gate


def _linear_and_gain(pi: Tensor, r_mag: Tensor, b_gate: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """h = π − b_gate, and e^{r_mag}, of each slot."""
    dtype = wide(pi.dtype)
    return pi - _at(b_gate, indices, dtype), _at(r_mag.to(dtype).exp(), indices, dtype)


def _at(vector: Tensor, indices: Tensor, dtype: torch.dtype) -> Tensor:
    return vector.to(dtype).index_select(0, indices)
