"""What dictionary_learning's encoders compute, as codes: one function for each kind of encoder.

Values are those of the dense acts that the host would give, in its dtype, and carry its gradient. The host takes the
ReLU first and selects then: what it selects at 0 has no gradient, and is an empty slot here.

Rows. Where its `nn.Linear` weights could not be laid by rows, and for `W_enc`, stored as (d, d_sae), `rows` copies
them, once for all that a pass does with them. (A copy that outlives the pass would be stale: the host writes weights
through `.data`, which leaves no trace.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..codes import SparseCodes
from ..ops import Selection, Threshold, TopK, decode, encode
from ._later import Later
from ._remembered import decode_remembered
from ._sae_lens_codes import products


def rows(W: Tensor) -> Tensor:
    """W with its rows contiguous in memory; its gradient in W's own order, as the host's optimiser and what it does to
    gradients want them: where the orders differ, those take longer than the copy."""
    return W if W.stride(1) == 1 else _Rows.apply(W)


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, W: Tensor) -> Tensor:
        """A copy."""
        ctx.stride = W.stride()
        return W.contiguous()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A copy back."""
        return torch.empty_strided(grad.shape, ctx.stride, dtype=grad.dtype, device=grad.device).copy_(grad)


def encoder(self: Any) -> tuple[Tensor, Tensor | None]:
    """(W_enc by rows, b_enc)."""
    if hasattr(self, "W_enc"):
        return rows(self.W_enc.mT), self.b_enc
    return rows(self.encoder.weight), self.encoder.bias


def decoder(self: Any) -> Tensor:
    """W_dec by rows."""
    return rows(self.W_dec if hasattr(self, "W_dec") else self.decoder.weight.mT)


def decoder_bias(self: Any) -> Tensor | None:
    """What is added to a reconstruction outside of `decoder`."""
    return next((getattr(self, name) for name in ("b_dec", "bias", "decoder_bias") if hasattr(self, name)), None)


def inside(self: Any, x: Tensor) -> Tensor:
    """What W_enc is applied to."""
    bias = decoder_bias(self)
    return x if bias is None or not getattr(self, "apply_b_dec_to_input", True) else x - bias


def selected(self: Any, x: Tensor, *selections: Selection) -> tuple[SparseCodes, ...]:
    """Codes of several selections of x W_encᵀ + b_enc; x as W_enc takes it."""
    W, b = encoder(self)
    return tuple(_in_hosts_dtype(self, codes) for codes in encode(x, W, b, selections))


def _in_hosts_dtype(self: Any, codes: SparseCodes) -> SparseCodes:
    """Inside `torch.autocast`, x @ W_enc + b_enc is of b_enc's dtype, where an `nn.Linear`'s is autocast's."""
    if not hasattr(self, "W_enc"):
        return codes
    return codes.with_values(codes.values.to(torch.promote_types(codes.values.dtype, self.b_enc.dtype)))


def relu(self: Any, x: Tensor) -> SparseCodes:
    """ReLU(z)."""
    return selected(self, inside(self, x), Threshold(0.0))[0]


def jumprelu(self: Any, x: Tensor) -> SparseCodes:
    """z · 1[z > θ] of the ReLU of z; θ gets no gradient, as in the host."""
    return selected(self, inside(self, x), Threshold(self.threshold.detach().clamp_min(0)))[0]


def topk(self: Any, x: Tensor) -> SparseCodes:
    """The k largest of each row."""
    return selected(self, inside(self, x), TopK(int(self.k)))[0]


def thresholded(self: Any, x: Tensor) -> SparseCodes:
    """`jumprelu`, of the groups that are active, where the coder has groups."""
    return active_groups(self, jumprelu(self, x))


def batch_topk(self: Any, x: Tensor) -> SparseCodes:
    """The k · len(x) largest of the batch; of the active groups, where the coder has groups."""
    given = inside(self, x)
    W, b = encoder(self)
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        given, W, b = given.to(dtype), W.to(dtype), None if b is None else b.to(dtype)
    flat = given.reshape(-1, given.shape[-1])
    count = int(self.k) * x.shape[0]
    values, indices, offsets = torch.ops.sae_kernels.linear_batch_topk(flat, W, b, count, True)
    codes = SparseCodes(values, indices, self.dict_size, offsets, tuple(x.shape[:-1]))
    return active_groups(self, _in_hosts_dtype(self, codes))


def active_groups(self: Any, codes: SparseCodes) -> SparseCodes:
    """Without the latents of a Matryoshka coder's inactive groups."""
    if not hasattr(self, "active_groups"):
        return codes
    end = int(self.group_indices[self.active_groups])
    return codes if end >= self.dict_size else codes.with_values(torch.where(codes.indices < end, codes.values, 0.0))


def gates(self: Any, x: Tensor) -> SparseCodes:
    """ReLU(π), π = x W_encᵀ + b_gate."""
    W, _ = encoder(self)
    return encode(inside(self, x), W, self.gate_bias, Threshold(0.0))


def gated(self: Any, x: Tensor, gate: SparseCodes | None = None) -> SparseCodes:
    """1[π > 0] · ReLU(e^r_mag ⊙ x W_encᵀ + b_mag); `gate` are the `gates`."""
    if gate is None:
        with torch.no_grad():
            gate = gates(self, x)
    at = gate.indices.long()
    W, _ = encoder(self)
    magnitudes = products(inside(self, x), W, gate) * self.r_mag.exp()[at] + self.mag_bias[at]
    return gate.with_values(magnitudes.relu())


def decoded(self: Any, codes: SparseCodes, acts: Tensor | None = None) -> Tensor:
    """The reconstruction; of dense acts that remember the codes, where they are given."""
    W = decoder(self)
    return biased(self, decode(codes, W) if acts is None else decode_remembered(acts, codes, W))


def biased(self: Any, y: Tensor) -> Tensor:
    """With the decoder's bias; autocast's dtype only where the host's bias is part of an `nn.Linear`."""
    bias = decoder_bias(self)
    return y + self.decoder.bias.to(y.dtype) if bias is None else y + bias


def pre_acts(self: Any, x: Tensor, like: Tensor, relu: bool = True) -> Tensor:
    """Dense x W_encᵀ + b_enc, or its ReLU, computed if somebody looks; x as the coder gets it, `like` an act."""
    given = inside(self, x)
    W, b = (self.W_enc, self.b_enc) if hasattr(self, "W_enc") else (self.encoder.weight, self.encoder.bias)
    linear = not hasattr(self, "W_enc")
    device = x.device.type
    autocast, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)

    def compute() -> Tensor:
        with torch.autocast(device, dtype, enabled=autocast):
            z = functional.linear(given, W, b) if linear else given @ W + b
        return functional.relu(z) if relu else z

    return Later.of(compute, (*x.shape[:-1], self.dict_size), like, weight=W)
