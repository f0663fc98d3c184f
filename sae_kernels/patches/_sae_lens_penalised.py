"""SAELens' training passes with a penalty: standard, gated and JumpReLU.

Terms, their weights and their gradients are the host's. With few active latents everything is computed at the slots of
codes: those z > 0, or for JumpReLU z > θ - ε/2, as far down as its straight-through estimates reach. At the start half
of all latents are active, and codes would take longer than what they stand for: then all pairs are computed, some
latents at a time. Which of the two, a few of the batch's tokens tell.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..ops import Threshold, encode
from . import _sae_lens_codes as kinds
from ._acts import dense_acts
from ._later import Later
from ._later_acts import LaterActs
from ._pairs import Elementwise, at_slots, in_chunks
from ._swap import host

FULL = 0.2  # the share of pairs from which on codes take longer than all pairs
ASKED = 32  # tokens that tell it


class Arithmetic(NamedTuple):
    """What an SAE computes of its pre-acts."""

    elementwise: Elementwise
    b: Tensor  # z = x W_enc + b
    lowest: float | Tensor  # pairs with z ≤ lowest are 0 and have no gradient
    vectors: tuple[Tensor, ...]


def standard(self: Any, loss: bool = True) -> Arithmetic:
    """f = ReLU(z); for the loss, Σ f_i ‖d_i‖."""

    def elementwise(z: Tensor, *norms: Tensor) -> Any:
        acts = z.relu()
        return (acts,), tuple(acts * each for each in norms)

    return Arithmetic(elementwise, self.b_enc, 0.0, _norms(self, loss))


def gated(self: Any, loss: bool = True) -> Arithmetic:
    """f = 1[π > 0] · ReLU(e^r_mag h + b_mag), π = h + b_gate; for the loss, ReLU(π) and Σ ReLU(π_i) ‖d_i‖. z is π that
    sends b_gate nothing, since f does not."""

    def elementwise(z: Tensor, b_gate: Tensor, r_mag: Tensor, b_mag: Tensor, *norms: Tensor) -> Any:
        fixed = b_gate.detach()
        acts = torch.where(z > 0, ((z - fixed) * r_mag.exp() + b_mag).relu(), 0.0)
        if not norms:
            return (acts,), ()
        gates = (z + (b_gate - fixed)).relu()
        return (acts, gates), (gates * norms[0],)

    vectors = (self.b_gate, self.r_mag, self.b_mag, *_norms(self, loss))
    return Arithmetic(elementwise, self.b_gate.detach(), 0.0, vectors)


def jumprelu(self: Any, loss: bool = True) -> Arithmetic:
    """f = z · 1[z > θ]; for the loss, Σ 1[z_i > θ_i] or Σ tanh(c f_i ‖d_i‖). Straight-through estimates are the
    host's own."""
    functions = vars(sys.modules[host(self).__module__])
    Jump, Step = functions["JumpReLU"], functions["Step"]
    tanh = self.cfg.jumprelu_sparsity_loss_mode == "tanh"
    estimate = self.bandwidth, self.cfg.jumprelu_ste_to_input
    scale = self.cfg.jumprelu_tanh_scale

    def elementwise(z: Tensor, theta: Tensor, *norms: Tensor) -> Any:
        acts = Jump.apply(z, theta, *estimate)
        if not norms:
            return (acts,), ()
        return (acts,), (torch.tanh(scale * acts * norms[0]) if tanh else Step.apply(z, theta, *estimate),)

    theta = self.threshold.to(self.W_enc.dtype)
    lowest = theta.detach() - (self.bandwidth / 2 if torch.is_grad_enabled() else 0.0)
    return Arithmetic(elementwise, self.b_enc, lowest, (theta, *_norms(self, loss)))


def _norms(self: Any, loss: bool) -> tuple[Tensor, ...]:
    """‖d_i‖, of the rows of W_dec."""
    return (self.W_dec.norm(dim=1),) if loss else ()


def reconstructed(self: Any, given: Tensor, inside: Tensor, arithmetic: Arithmetic) -> Tensor:
    """acts W_dec, without a bias; `given` is what the SAE was called with, `inside` that processed."""
    return _Run(self, given, inside, arithmetic).decoded[0]


def encoded(self: Any, inside: Tensor, arithmetic: Arithmetic) -> Tensor:
    """Dense acts, which remember their codes where these are few: computed as those of the SAE for inference, to the
    last bit."""
    W_enc, b, lowest = self.W_enc, arithmetic.b, arithmetic.lowest
    if _share(inside.reshape(-1, inside.shape[-1]), W_enc, b, lowest) >= FULL:
        return arithmetic.elementwise(inside @ W_enc + b, *arithmetic.vectors)[0][0]
    if hasattr(self, "b_gate"):
        acts = kinds.gated(self, inside)
    else:
        codes = encode(inside, W_enc.mT, b, Threshold(lowest))
        acts = at_slots(arithmetic.elementwise, codes, None, arithmetic.vectors).acts[0]
    return dense_acts(kinds.as_acts(self, acts))


def standard_pass(self: Any, step_input: Any) -> Any:
    """StandardTrainingSAE; with another norm than the first, the host's."""
    if self.cfg.lp_norm != 1:
        return host(self).training_forward_pass(self, step_input)
    run = _step(self, step_input, standard(self))
    (sparsity,) = run.terms
    return run.output(step_input, {"l1_loss": (step_input.coefficients["l1"] * sparsity).mean()})


def gated_pass(self: Any, step_input: Any) -> Any:
    """GatedTrainingSAE. Its auxiliary path reads the input as it came: where that is normalised, or in another dtype,
    the host's own."""
    normalised = self.cfg.normalize_activations in ("constant_norm_rescale", "layer_norm")
    if normalised or _heard(self.hook_sae_input) or step_input.sae_in.dtype != self.dtype:
        return host(self).training_forward_pass(self, step_input)
    run = _step(self, step_input, gated(self))
    (sparsity,), through_gates = run.terms, run.decoded[1] + self.b_dec
    auxiliary = (through_gates - step_input.sae_in).pow(2).sum(dim=-1).mean()
    l1_loss = step_input.coefficients["l1"] * sparsity.mean()
    return run.output(step_input, {"l1_loss": l1_loss, "auxiliary_reconstruction_loss": auxiliary})


def jumprelu_pass(self: Any, step_input: Any) -> Any:
    """JumpReLUTrainingSAE: all its sparsity losses, and the pre-act loss of the dead latents."""
    mode = self.cfg.jumprelu_sparsity_loss_mode
    if mode not in ("step", "tanh", "quadratic") or (mode == "quadratic" and self.cfg.target_l0 is None):
        return host(self).training_forward_pass(self, step_input)
    with torch.no_grad():
        self.threshold.data.clamp_(min=0.0)
    run = _step(self, step_input, jumprelu(self))
    (sparsity,) = run.terms
    if mode == "quadratic":
        target = self.cfg.target_l0
        sparsity = 2 / target * (sparsity - target) ** 2
    losses = {"l0_loss": (step_input.coefficients["l0"] * sparsity).mean()}
    if self.cfg.pre_act_loss_coefficient is not None:
        losses["pre_act_loss"] = self.cfg.pre_act_loss_coefficient * _pre_act_loss(self, run, step_input)
    return run.output(step_input, losses)


def _pre_act_loss(self: Any, run: _Run, step_input: Any) -> Tensor:
    """Σ ReLU(θ_i - z_i) ‖d_i‖ over the dead latents alone, averaged over tokens."""
    mask = step_input.dead_neuron_mask
    dead = mask.nonzero().squeeze(1) if mask is not None else run.x.new_empty(0, dtype=torch.long)
    if not len(dead):
        return run.x.new_zeros(())

    def elementwise(z: Tensor, theta: Tensor, norms: Tensor) -> Any:
        return (), ((theta - z).relu() * norms,)

    vectors = [vector[dead] for vector in run.arithmetic.vectors]
    (short,) = in_chunks(elementwise, run.x, self.W_enc[:, dead], run.b[dead], None, vectors).terms
    return short.mean()


def _step(self: Any, step_input: Any, arithmetic: Arithmetic) -> _Run:
    return _Run(self, step_input.sae_in, self.process_sae_in(step_input.sae_in), arithmetic)


class _Run:
    """Encoder, arithmetic and decoder."""

    def __init__(self, sae: Any, given: Tensor, inside: Tensor, arithmetic: Arithmetic) -> None:
        self.sae, self.inside, self.arithmetic = sae, inside, arithmetic
        lead, elementwise, vectors = tuple(inside.shape[:-1]), arithmetic.elementwise, arithmetic.vectors
        flat = inside.reshape(-1, inside.shape[-1])
        self.x, self.b = _without_b_dec(sae, given, flat, arithmetic.b)
        if _share(self.x, sae.W_enc, self.b, arithmetic.lowest) < FULL:
            codes = encode(self.x, kinds.rows(sae), self.b, Threshold(arithmetic.lowest))
            sums = at_slots(elementwise, replace(codes, lead=lead), sae.W_dec, vectors)
            self.acts = LaterActs.of_codes(kinds.as_acts(sae, sums.acts[0]))
        else:
            sums = in_chunks(elementwise, self.x, sae.W_enc, self.b, sae.W_dec, vectors)
            self.acts = LaterActs.counted(self._dense_acts, sae.W_enc, sums.fired, sums.l0.view(lead))
        self.decoded = [each.view(*lead, -1) for each in sums.decoded]
        self.terms = [each.view(lead) for each in sums.terms]

    def _dense_acts(self) -> Tensor:
        arithmetic = self.arithmetic
        return arithmetic.elementwise(self.inside @ self.sae.W_enc + arithmetic.b, *arithmetic.vectors)[0][0]

    def output(self, step_input: Any, losses: Mapping[str, Tensor]) -> Any:
        """The host's TrainStepOutput."""
        sae, given = self.sae, step_input
        out = sae.hook_sae_recons(self.decoded[0] + sae.b_dec)
        sae_out = sae.reshape_fn_out(sae.run_time_activation_norm_fn_out(out), sae.d_head)
        mse = sae.mse_loss_fn(sae_out, given.sae_in).sum(dim=-1).mean()
        every = {"mse_loss": mse} | {name: loss.to(mse.dtype) for name, loss in losses.items()}
        TrainStepOutput = vars(sys.modules["sae_lens.saes.sae"])["TrainStepOutput"]
        return TrainStepOutput(
            sae_in=given.sae_in,
            sae_out=sae_out,
            feature_acts=self.acts,
            hidden_pre=_hidden_pre(sae, self.inside),
            loss=sum(every.values()),
            losses=every,
        )


def _without_b_dec(sae: Any, given: Tensor, x: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The encoder's input and bias. Where b_dec alone, which is taken off the input, wants a gradient of it, the bias
    carries that, -W_enc Σ ∂/∂z, and saves the product of ∂/∂z with W_enc."""
    alone = not given.requires_grad and not _heard(sae.hook_sae_input)
    if not (alone and x.requires_grad):
        return x, b
    b_dec = sae.b_dec * sae.cfg.apply_b_dec_to_input
    with torch.autocast(x.device.type, enabled=False):
        nothing = (b_dec.detach() - b_dec) @ sae.W_enc.detach()
    return x.detach(), b + nothing.to(b.dtype)


def _heard(point: Any) -> bool:
    return bool(point._forward_hooks or point._forward_pre_hooks or point._backward_hooks or point._backward_pre_hooks)


@torch.no_grad()
def _share(x: Tensor, W_enc: Tensor, b: Tensor, lowest: float | Tensor) -> float:
    """Of all pairs, how many count; from a few of the tokens, if these are many."""
    if len(x) < 2 * ASKED:
        return 0.0
    few = x[:: len(x) // ASKED][:ASKED]
    return float((few @ W_enc + b > lowest).float().mean())


def _hidden_pre(sae: Any, inside: Tensor) -> Tensor:
    """Dense pre-acts, of the magnitudes in a gated SAE; computed if somebody reads them."""
    W_enc = sae.W_enc
    r_mag, b = (sae.r_mag, sae.b_mag) if hasattr(sae, "r_mag") else (None, sae.b_enc)

    def compute() -> Tensor:
        return inside @ (W_enc if r_mag is None else W_enc * r_mag.exp()) + b

    return Later.of(compute, (*inside.shape[:-1], W_enc.shape[1]), W_enc, weight=W_enc)
