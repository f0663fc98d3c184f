"""What SAELens' encoders compute, as codes: one function for each kind of encoder.

`inside` is the SAE's processed input, (…, d_in). Values are those that W_dec is multiplied with, and carry the host's
gradient: the dense acts that the host would give, except where it rescales them. SAELens stores W_enc as (d_in, d_sae).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..architectures._slots import latent_sums
from ..architectures._sums import wide
from ..codes import SparseCodes
from ..ops import Threshold, TopK, encode


def relu(self: Any, inside: Tensor) -> SparseCodes:
    """ReLU(x W_enc + b_enc)."""
    return encode(inside, self.W_enc.mT, self.b_enc, Threshold(0.0))


def jumprelu(self: Any, inside: Tensor) -> SparseCodes:
    """z · 1[z > θ] of the ReLU of z; θ gets no gradient, as in the host."""
    return encode(inside, self.W_enc.mT, self.b_enc, Threshold(self.threshold.detach().clamp_min(0)))


def gated(self: Any, inside: Tensor) -> SparseCodes:
    """1[x W_enc + b_gate > 0] · ReLU(x (W_enc e^r_mag) + b_mag): of the latents whose gate is open, the magnitude."""
    with torch.no_grad():
        gate = encode(inside, self.W_enc.mT, self.b_gate, Threshold(0.0))
    at = gate.indices.long()
    magnitude = products(inside, self.W_enc.mT, gate) * self.r_mag.exp()[at] + self.b_mag[at]
    return gate.with_values(magnitude.relu())


def topk(self: Any, inside: Tensor, *more: TopK) -> tuple[SparseCodes, ...]:
    """ReLU(z) where z ‖W_dec_i‖ (or z, unless the SAE rescales) is among the k largest, z = x W_enc + b_enc; further
    selections likewise. Values are z's: `rescaled` gives acts."""
    return selected(self, inside, (TopK(int(self.cfg.k)), *more))


def selected(self: Any, inside: Tensor, selections: tuple[TopK, ...]) -> tuple[SparseCodes, ...]:
    """Selections of the (rescaled) z, with z for values."""
    if not rescales(self):
        return encode(inside, rows(self), self.b_enc, selections)
    with torch.no_grad():
        norms, W, b = _scaled(self)
        chosen = encode(inside, W, b, selections)
    return tuple(_unscaled(self, inside, codes, W, norms) for codes in chosen)


def batch_topk(self: Any, inside: Tensor) -> SparseCodes:
    """The int(k · tokens) largest of the batch among the ReLU'd z (k need not be whole), as in `topk`."""
    flat = inside.reshape(-1, inside.shape[-1])
    count = int(self.cfg.k * flat.shape[0])
    op = torch.ops.sae_kernels.linear_batch_topk
    if not rescales(self):
        values, indices, offsets = op(flat, rows(self), self.b_enc, count, True)
        return SparseCodes(values, indices, self.cfg.d_sae, offsets, tuple(inside.shape[:-1]))
    with torch.no_grad():
        norms, W, b = _scaled(self)
        values, indices, offsets = op(flat, W, b, count, True)
    codes = SparseCodes(values, indices, self.cfg.d_sae, offsets, tuple(inside.shape[:-1]))
    return _unscaled(self, inside, codes, W, norms)


def rescales(self: Any) -> bool:
    """Whether acts are z ‖W_dec_i‖, which decoding takes back."""
    return bool(getattr(self.cfg, "rescale_acts_by_decoder_norm", False))


def rescaled(self: Any, codes: SparseCodes) -> SparseCodes:
    """Codes with the host's acts for values, from those with z."""
    if not rescales(self):
        return codes
    return codes.with_values(codes.values * self.W_dec.norm(dim=-1)[codes.indices.long()])


def as_acts(self: Any, codes: SparseCodes) -> SparseCodes:
    """Of the dtype that the host's acts have: inside `torch.autocast` its biases', which it adds to the product."""
    return codes.with_values(codes.values.to(torch.promote_types(codes.values.dtype, self.b_dec.dtype)))


def rows(self: Any) -> Tensor:
    """W_enc as (d_sae, d_in): a view where it lies by latents, or a pass has no gradients; one that has them reads rows
    again, and takes a copy."""
    return self.W_enc.mT.contiguous() if torch.is_grad_enabled() else self.W_enc.mT


def _scaled(self: Any) -> tuple[Tensor, Tensor, Tensor]:
    """‖W_dec_i‖, and the rows of W_enc and b_enc times it."""
    norms, W = self.W_dec.norm(dim=-1), self.W_enc.mT
    if W.is_contiguous():
        return norms, W * norms[:, None], self.b_enc * norms
    W = W.clone(memory_format=torch.contiguous_format)  # transposed first: a product of both would crawl
    return norms, W.mul_(norms[:, None]), self.b_enc * norms


def _unscaled(self: Any, inside: Tensor, chosen: SparseCodes, W: Tensor, norms: Tensor) -> SparseCodes:
    """Codes with z for values, and z's gradients, from those with z ‖d_i‖, d_i the rows of W_dec.

    What is decoded is (z ‖d_i‖) / ‖d_i‖, whose derivative with respect to ‖d_i‖ is 0: no gradient goes that way, where
    the host computes two that cancel.
    """
    at = chosen.indices.long()
    if not torch.is_grad_enabled():
        return chosen.with_values(_divided(chosen.values, norms[at]))
    if torch.is_autocast_enabled(inside.device.type):
        values = products(inside, self.W_enc.mT, chosen) + self.b_enc[at]
        return chosen.with_values(torch.where(chosen.values != 0, values, 0.0))
    _, indices, offsets = chosen.flat()
    flat = inside.reshape(-1, inside.shape[-1])
    scaled = chosen.values.reshape(indices.shape)
    z = _Slots.apply(flat, self.W_enc, self.b_enc, scaled, indices, offsets, W, norms)
    return chosen.with_values(z.view(chosen.values.shape))


def _divided(values: Tensor, norms: Tensor) -> Tensor:
    """0 where the value is: also of a row of W_dec that is 0."""
    return torch.where(values != 0, values / norms, 0.0)


class _Slots(torch.autograd.Function):
    """z_s = x_n · w_i + b_i of slots, from their z_s ‖d_i‖, and its gradients for x, W_enc and b_enc."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        W_enc: Tensor,
        b_enc: Tensor,
        scaled: Tensor,
        indices: Tensor,
        offsets: Tensor | None,
        W: Tensor,
        norms: Tensor,
    ) -> Tensor:
        """W: the rows w_i ‖d_i‖."""
        norms = norms[indices.long()]
        ctx.save_for_backward(x, scaled, indices, offsets, W, norms)
        return _divided(scaled, norms)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Through slots that are not empty."""
        x, scaled, indices, offsets, W, norms = ctx.saved_tensors
        grad = torch.where(scaled != 0, grad, 0.0)
        dx = dW = db = None
        if ctx.needs_input_grad[0]:
            dx = torch.ops.sae_kernels.spmm(_divided(grad, norms), indices, offsets, W)
        if ctx.needs_input_grad[1]:
            dW = torch.ops.sae_kernels.spmm_t(grad, indices, offsets, x, len(W)).mT
        if ctx.needs_input_grad[2]:
            db = latent_sums(grad.to(wide(grad.dtype)), indices, offsets, len(x), len(W)).to(grad.dtype)
        return dx, dW, db, None, None, None, None, None


def products(inside: Tensor, W: Tensor, codes: SparseCodes) -> Tensor:
    """x_n · w_i of every slot of the codes, in the shape of their values; 0 in empty ones."""
    values, indices, offsets = codes.flat()
    flat = inside.reshape(-1, inside.shape[-1])
    return torch.ops.sae_kernels.sddmm(flat, W, indices, offsets, values.detach()).view(codes.values.shape)
