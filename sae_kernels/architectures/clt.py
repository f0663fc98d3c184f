"""`clt`: the cross-layer transcoder."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .. import settings
from ..codes import SparseCodes
from ..errors import ConfigError
from ..ops import Threshold, decode, encode
from ._affine import Affine, fold_encoder
from ._base import CoderConfig
from ._by_tokens import ByTokens, Encoder, Parts, Terms
from ._centre import centre, centre_pre_acts
from ._layers import LayersConfig, merged, split
from ._penalty import Penalised
from ._rows import unit_rows
from ._slots import at_slots, latent_sums
from ._straight_through import jump, window
from ._sums import row_norms, squared_error, wide


@dataclass(frozen=True)
class CLTConfig(LayersConfig):
    """As `LayersConfig`; the same number of latents for each layer, `d_sae` in all. `d_target` is the width of the
    target, all layers side by side (None: d_in); `tanh_scale` is c; `bandwidth` ε and `threshold_init` are in units of
    the root mean square of the layer's input features (1 after `normalize`), as for `jumprelu`; `skip` adds
    W_skip^l x^l to layer l."""

    d_target: int | None = field(default=None, kw_only=True)
    tanh_scale: float = field(default=4.0, kw_only=True)
    bandwidth: float = field(default=0.06, kw_only=True)
    threshold_init: float = field(default=0.3, kw_only=True)  # from 1, no penalty is small enough for a large L0
    skip: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("tanh_scale", "bandwidth", "threshold_init"):
            self.require_not_negative(name)
            if getattr(self, name) == 0:
                raise ConfigError(f"{name} = {getattr(self, name)!r}, expected a number > 0")
        self.require_bool("skip")
        self.require_equal_parts("d_sae")
        if self.d_target is not None:
            self.require_positive("d_target")
            self.require_equal_parts("d_target")
        self.require_equal_parts("d_in")

    @property
    def d_out(self) -> int:
        """Width of the target."""
        return self.d_in if self.d_target is None else self.d_target


class CrossLayerTranscoder(ByTokens, Penalised):
    """z^l = E^l x^l + b_enc^l;  f^l = z^l · 1[z^l > θ^l], θ = e^{log_theta};  ŷ^l = Σ_{m ≤ l} f^m D^{m→l} + b_dec^l.

    With `skip`, ŷ^l has W_skip^l x^l too, W_skip (L, d_out / L, d_in / L), which starts at 0.

    loss = Σ_l ‖y^l − ŷ^l‖² + λ Σ_i tanh(c ‖d_i‖ f_i), d_i = (D_i^{m→m}, …, D_i^{m→L}) being all decoders of latent i of
    layer m: the mean over tokens of these sums. λ is `sparsity_coefficient`, c `tanh_scale`. Terms: `mse`, `tanh`
    (without λ), `l0`.

    x^l is the input and y^l the output of an MLP, all layers side by side: x (N, d_in), y (N, d_out), d_in = L · d.
    Latents are numbered layer by layer: layer l has n = d_sae / L of them, l·n … (l+1)·n − 1, and the slots of a row of
    codes stand in that order. W_enc (d_sae, d_in / L): row i reads the layer that latent i belongs to. There is no
    W_dec but `W_dec_from[m]` (n, (L − m) · d_out / L) for each layer m, whose row i is d_i. So the decoders take what
    they must, (L + 1) / 2L of a (d_sae, d_out) matrix, the norm of d_i is that of a row, and decoding is one sparse
    product a layer, which writes what its latents say to all layers from there on.

    Gradients: f and the penalty pass them to z where z > θ; θ's are straight-through estimates, ∂f/∂θ = −(θ/ε) K with
    K = 1[|z − θ| < ε/2], of the error and of the penalty, also where z ≤ θ. The penalty trains ‖d_i‖ too. log_theta
    stays float32 whatever the other weights are. ε and the initial θ are in units of √(E‖x^l − x̄^l‖² / d), which the
    first batch settles layer by layer (`input_rms`, saved): the spread of pre-acts at the start. With 16-bit values ε
    is at least four of their steps around θ.

    Memory: 8 bytes for each pair with z > θ − ε/2, about four times over, and while gradients are computed about six
    numbers of 4 bytes. Where θ starts at one spread of the pre-acts 16 % of all pairs are such, with a small θ half of
    them; a batch of so many goes through in chunks (see `ByTokens`). The reconstruction is summed in float32, in place.

    At the start: rows of W_enc are unit vectors in random directions, and b_enc such that pre-acts are E^l (x^l − x̄^l);
    decoders are 0 and b_dec is the target's mean, so that training starts from the mean as its prediction. (With
    `b_dec_init`, the geometric median or 0 in the place of both means.) Resampling is not defined for it.

    Source: Ameisen et al., Circuit Tracing: Revealing Computational Graphs in Language Models (Transformer Circuits,
    2025); straight-through estimates arXiv 2407.14435.
    """

    Config: ClassVar[type[CoderConfig]] = CLTConfig
    architecture: ClassVar[str] = "clt"
    kept_wide: ClassVar[tuple[str, ...]] = ("log_theta", "input_rms")
    config: CLTConfig
    input_rms: Tensor

    def __init__(self, config: CLTConfig) -> None:
        super().__init__(config)
        n_layers, d_out = config.n_layers, config.d_out // config.n_layers
        per_layer = config.d_sae // n_layers
        self.W_enc = nn.Parameter(unit_rows(torch.randn(config.d_sae, config.d_in // n_layers)))
        self.b_enc = nn.Parameter(torch.zeros(config.d_sae))
        self.log_theta = nn.Parameter(torch.full((config.d_sae,), math.log(config.threshold_init)))
        self.W_dec_from = nn.ParameterList(
            torch.zeros(per_layer, (n_layers - layer) * d_out) for layer in range(n_layers)
        )
        self.b_dec = nn.Parameter(torch.zeros(config.d_out))
        shape = n_layers, d_out, config.d_in // n_layers
        self.W_skip = nn.Parameter(torch.zeros(shape)) if config.skip else None
        self.register_buffer("input_rms", torch.ones(n_layers))

    @property
    def n_layers(self) -> int:
        """L."""
        return self.config.n_layers

    @property
    def theta(self) -> Tensor:
        """θ (d_sae,), float32 or float64."""
        return self.log_theta.exp()

    def latents(self, layer: int) -> slice:
        """The latents of a layer."""
        per_layer = self.d_sae // self.n_layers
        return slice(layer * per_layer, (layer + 1) * per_layer)

    def layer_of(self, latent: int) -> int:
        """The layer that a latent reads."""
        return latent // (self.d_sae // self.n_layers)

    def decoder(self, latent: int, layer: int) -> Tensor:
        """D_i^{m→l}, (d_out / L,): what the latent, of layer m, writes to a layer; 0 to those before its own."""
        own = self.layer_of(latent)
        row = latent - self.latents(own).start
        width = self.d_out // self.n_layers
        if layer < own:
            return self.b_dec.new_zeros(width)
        return self.W_dec_from[own][row, (layer - own) * width : (layer - own + 1) * width]

    @torch.no_grad()
    def initialise(self, x: Tensor, target: Tensor) -> None:
        """b_dec, b_enc, and what ε and θ are measured in: the root mean square of x^l − x̄^l in the first batch (1 where
        that is 0)."""
        super().initialise(x, target)
        middle = centre(x, self.config.b_dec_init)
        for layer, inside in enumerate(middle.chunk(self.n_layers)):
            at = self.latents(layer)
            centre_pre_acts(self.W_enc[at], self.b_enc[at], inside)
        spread = (x - middle.to(x.dtype)).to(self.input_rms.dtype).unflatten(1, (self.n_layers, -1))
        rms = spread.square().mean((0, 2)).sqrt()
        self.input_rms.copy_(torch.where(rms > 0, rms, 1.0))
        self.log_theta.copy_((self.config.threshold_init * self._by_latent(self.input_rms)).log())

    def encode(self, x: Tensor) -> SparseCodes:
        """x (…, d_in) → ragged codes, all of them above their thresholds, the slots of a row in the order of layers."""
        x, theta = self.check_input(x), self.theta
        return merged([self._encode(x, layer, theta) for layer in range(self.n_layers)], tuple(x.shape[:-1]))

    def encode_layer(self, x: Tensor, layer: int) -> SparseCodes:
        """A layer's input (…, d_in / L) → codes over its latents alone."""
        return self._encode_layer(x, layer, self.theta)

    def decode_layer(self, codes: SparseCodes, layer: int) -> Tensor:
        """Codes over a layer's latents → (…, (L − layer) · d_out / L): what they write to that layer and to those
        behind it, without b_dec."""
        return decode(codes, self.W_dec_from[layer])

    def decode(self, codes: SparseCodes) -> Tensor:
        """codes → (…, d_out): each layer's latents to that layer and those behind it, plus b_dec."""
        parts = split(codes, self.n_layers)
        y = self._started(codes.n_rows)
        for layer, part in enumerate(parts):
            y = self._add(y, self.decode_layer(part, layer), layer)
        return y.to(codes.values.dtype).reshape(*codes.lead_shape, self.d_out)

    def reconstruct(self, codes: SparseCodes, x: Tensor) -> Tensor:
        """Decoded codes, plus W_skip^l x^l with a skip."""
        return self._completed(self.decode(codes), x)

    def _completed(self, y: Tensor, x: Tensor) -> Tensor:
        if self.W_skip is None:
            return y
        parts = zip(x.chunk(self.n_layers, dim=-1), self.W_skip, strict=True)
        return y + torch.cat([part @ weight.mT for part, weight in parts], dim=-1)

    def stream(self) -> CLTStream:
        """For a model in which this coder's reconstructions take the place of what it reconstructs: what a layer reads
        depends on what the layers before it wrote."""
        return CLTStream(self)

    @property
    def may_be_full(self) -> bool:
        """No."""
        return False

    def encoders(self, x: Tensor) -> list[Encoder]:
        """See `ByTokens`."""
        theta = self.theta.detach()
        lowest, width = theta - self._epsilon(x, theta) / 2, self.d_in // self.n_layers
        found = []
        for layer in range(self.n_layers):
            at, part = self.latents(layer), x[:, layer * width : (layer + 1) * width]
            found.append(Encoder(part, self.W_enc[at], self.b_enc[at], lowest[at]))
        return found

    def terms(self, x: Tensor, target: Tensor) -> Terms:
        """See `ByTokens`. The codes may have empty slots, where θ − ε/2 < z ≤ θ."""
        theta = self.theta
        epsilon = self._epsilon(x, theta)
        lowest = theta.detach() - epsilon / 2
        y, codes = self._started(len(x)), []
        tanh = l0 = theta.new_zeros(())
        for layer in range(self.n_layers):
            at, W_dec = self.latents(layer), self.W_dec_from[layer]
            pre_acts = self._encode(x, layer, lowest)
            jumped = jump(pre_acts, theta[at], epsilon[at], W_dec, None)
            tanh = tanh + self._tanh(pre_acts, theta[at], epsilon[at], row_norms(W_dec))
            l0 = l0 + jumped.l0.detach()
            y = self._add(y, jumped.reconstruction, layer)
            codes.append(jumped.codes)
        reconstruction = self._completed(y.to(codes[0].values.dtype), x)
        parts = {"mse": squared_error(reconstruction, target), "tanh": tanh, "l0": l0}
        return Terms(parts, merged(codes, (len(x),)), reconstruction)

    def combined(self, parts: Parts) -> Tensor:
        """Σ_l ‖y^l − ŷ^l‖² + λ Σ_i tanh(c ‖d_i‖ f_i)."""
        return parts["mse"] + self.sparsity * parts["tanh"]

    @classmethod
    def can_resample(cls) -> bool:
        """No."""
        return False

    @torch.no_grad()
    def fold(self, input: Affine, target: Affine) -> None:
        """See `SparseCoder.fold`. Pre-acts stay as they are, so thresholds do."""
        inputs = self._by_layer(input)
        for layer, inside in enumerate(inputs):
            fold_encoder(self.W_enc[self.latents(layer)], self.b_enc[self.latents(layer)], inside)
        scales = target.to(self.b_dec).scale.to(self.b_dec.dtype)
        width = self.d_out // self.n_layers
        for layer, W_dec in enumerate(self.W_dec_from):
            W_dec.div_(scales[layer * width :])
        self.b_dec.copy_(target.invert(self.b_dec))
        if scale := target.common_scale():
            for tensor in (self.W_enc, self.b_enc, self.input_rms):
                tensor.div_(scale)
            for W_dec in self.W_dec_from:
                W_dec.mul_(scale)
            self.log_theta.sub_(math.log(scale))
        if self.W_skip is not None:
            for layer, (inside, outside) in enumerate(zip(inputs, self._by_layer(target), strict=True)):
                weight = self.W_skip[layer]
                inside, outside = inside.to(weight), outside.to(weight)
                weight.mul_(inside.scale).div_(outside.scale[:, None])
                self.b_dec[layer * width : (layer + 1) * width].sub_(weight @ inside.mean.to(weight))

    def _encode(self, x: Tensor, layer: int, theta: Tensor) -> SparseCodes:
        """Codes of one layer's latents, over these alone."""
        width = self.d_in // self.n_layers
        return self._encode_layer(x[..., layer * width : (layer + 1) * width], layer, theta)

    def _encode_layer(self, x: Tensor, layer: int, theta: Tensor) -> SparseCodes:
        at = self.latents(layer)
        return encode(x, self.W_enc[at], self.b_enc[at], Threshold(theta[at]))

    def _started(self, n: int) -> Tensor:
        """A reconstruction that no latent has added to, (n, d_out), float32 at least."""
        return self.b_dec.to(wide(self.b_dec.dtype)).expand(n, -1).clone(memory_format=torch.contiguous_format)

    def _add(self, y: Tensor, part: Tensor, layer: int) -> Tensor:
        """y with what a layer's latents write, in place."""
        return _AddBehind.apply(y, part, layer * (self.d_out // self.n_layers))

    def _tanh(self, pre_acts: SparseCodes, theta: Tensor, epsilon: Tensor, norms: Tensor) -> Tensor:
        """(1/N) Σ tanh(c ‖d_i‖ f_i)."""
        slots = pre_acts.indices, pre_acts.offsets, pre_acts.n_rows
        f = _Jumped.apply(pre_acts.values.to(theta.dtype), theta, epsilon, *slots, settings.chosen_backend())
        scaled = self.config.tanh_scale * at_slots(norms.to(theta.dtype), pre_acts) * f
        return scaled.tanh().sum() / max(1, pre_acts.n_rows)

    def _epsilon(self, x: Tensor, theta: Tensor) -> Tensor:
        """ε of each latent."""
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        return window(self.config.bandwidth * self._by_latent(self.input_rms), theta, dtype)

    def _by_latent(self, of_layers: Tensor) -> Tensor:
        """(L,) → (d_sae,)."""
        return of_layers.repeat_interleave(self.d_sae // self.n_layers)

    def _by_layer(self, affine: Affine) -> list[Affine]:
        parts = zip(affine.mean.chunk(self.n_layers), affine.scale.chunk(self.n_layers), strict=True)
        return [Affine(mean, scale) for mean, scale in parts]


class CLTStream:
    """A cross-layer transcoder at work layer by layer on some tokens, without gradient."""

    def __init__(self, coder: CrossLayerTranscoder) -> None:
        self._coder = coder
        self._y: Tensor | None = None

    @torch.no_grad()
    def read(self, layer: int, x: Tensor) -> None:
        """What the layer reads, (tokens, d_in / L). Layers are read in order, each once."""
        coder = self._coder
        if self._y is None:
            self._y = coder._started(len(x))
        coder._add(self._y, coder.decode_layer(coder.encode_layer(x, layer), layer), layer)
        if coder.W_skip is not None:
            self._y.chunk(coder.n_layers, dim=1)[layer].add_(x @ coder.W_skip[layer].mT)

    @torch.no_grad()
    def write(self, layer: int) -> Tensor:
        """The layer's reconstruction, (tokens, d_out / L), from the layers read so far."""
        if self._y is None:
            raise RuntimeError(f"write({layer}) before any read")
        return self._y.chunk(self._coder.n_layers, dim=1)[layer].to(self._coder.b_dec.dtype)


class _AddBehind(torch.autograd.Function):
    """y[:, first:] += part, in place, y's gradient passed on as it is: slices of autograd's own copy it each time."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, part: Tensor, first: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.first, ctx.dtype = first, part.dtype
        y[:, first:] += part
        ctx.mark_dirty(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad, grad[:, ctx.first :].to(ctx.dtype).contiguous(), None


class _Jumped(torch.autograd.Function):
    """f = z · 1[z > θ] at the slots of ragged codes, with the straight-through estimate to θ: see `jump`, which gives
    the gradient of the reconstruction; this gives that of what is computed slot by slot."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, z: Tensor, theta: Tensor, epsilon: Tensor, indices: Tensor, offsets: Tensor, n: int, backend: str
    ) -> Tensor:
        ctx.save_for_backward(z, theta, epsilon, indices, offsets)
        ctx.rest = n, len(theta), backend
        return torch.where(z <= theta.index_select(0, indices), 0, z)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        z, theta, epsilon, indices, offsets = ctx.saved_tensors
        at, width = theta.index_select(0, indices), epsilon.index_select(0, indices)
        slope = torch.where((z - at).abs() < width / 2, -grad * at / width, 0)
        d_theta = latent_sums(slope, indices, offsets, *ctx.rest)
        return torch.where(z <= at, 0, grad), d_theta, None, None, None, None, None
