"""What SAELens' encoders compute, as codes: one function for each kind of encoder.

`inside` is the SAE's processed input, (…, d_in). Values are those of the dense acts that the host would give, and
carry its gradient. SAELens stores W_enc as (d_in, d_sae).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

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
    """ReLU(TopK(z)), z = x W_enc + b_enc, times ‖W_dec_i‖ where the SAE rescales; further selections of z likewise."""
    selections = (TopK(int(self.cfg.k)), *more)
    if not self.cfg.rescale_acts_by_decoder_norm:
        return encode(inside, self.W_enc.mT, self.b_enc, selections)
    with torch.no_grad():
        norms = self.W_dec.norm(dim=-1)
        chosen = encode(inside, self.W_enc.mT * norms[:, None], self.b_enc * norms, selections)
    return tuple(rescaled(self, inside, codes) for codes in chosen)


def batch_topk(self: Any, inside: Tensor) -> SparseCodes:
    """The int(k · tokens) largest of the batch among the ReLU'd z (k need not be whole), rescaled as in `topk`."""
    flat = inside.reshape(-1, inside.shape[-1])
    count = int(self.cfg.k * flat.shape[0])
    op = torch.ops.sae_kernels.linear_batch_topk
    if not self.cfg.rescale_acts_by_decoder_norm:
        values, indices, offsets = op(flat, self.W_enc.mT, self.b_enc, count, True)
        return SparseCodes(values, indices, self.cfg.d_sae, offsets, tuple(inside.shape[:-1]))
    with torch.no_grad():
        norms = self.W_dec.norm(dim=-1)
        values, indices, offsets = op(flat, self.W_enc.mT * norms[:, None], self.b_enc * norms, count, True)
    return rescaled(self, inside, SparseCodes(values, indices, self.cfg.d_sae, offsets, tuple(inside.shape[:-1])))


def rescaled(self: Any, inside: Tensor, chosen: SparseCodes) -> SparseCodes:
    """Chosen slots with their values (x·w_i + b_i) ‖d_i‖ computed again so that they have gradients, 0 where the choice
    left 0. Only the chosen rows are touched, where the derivative of the scaled weights would go over all of them."""
    if not torch.is_grad_enabled():
        return chosen
    at = chosen.indices.long()
    values = (products(inside, self.W_enc.mT, chosen) + self.b_enc[at]) * self.W_dec.norm(dim=-1)[at]
    return chosen.with_values(torch.where(chosen.values != 0, values, 0.0))


def products(inside: Tensor, W: Tensor, codes: SparseCodes) -> Tensor:
    """x_n · w_i of every slot of the codes, in the shape of their values; 0 in empty ones."""
    values, indices, offsets = codes.flat()
    flat = inside.reshape(-1, inside.shape[-1])
    return torch.ops.sae_kernels.sddmm(flat, W, indices, offsets, values.detach()).view(codes.values.shape)
