"""sparsify's `SparseCoder`: TopK and groupmax autoencoders and transcoders, AuxK, Multi-TopK, skip connections.

What changes is the work, not the result: no (tokens, d_sae) tensor is made unless `pre_acts` is asked for.

Gradients. sparsify's fused encoder differs from the derivative of what it computes (sparsify 1.3.3): a latent that was
chosen with a pre-act below 0, and so has value 0, sends a gradient to the encoder all the same; and what flows into
`pre_acts` (AuxK, Multi-TopK) is dropped, so that those losses train the decoder only. `gradients="exact"` (the default)
is the true derivative; `"compat"` is what sparsify does. Which of the latents tied at 0 fill a row with fewer than k
positive pre-acts is arbitrary there, and here the one with the largest pre-act.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..codes import SparseCodes
from ..errors import ArgumentError
from ..ops import TopK, encode
from ._all_slots import decode_all_slots
from ._group_max import group_max
from ._later import Later
from ._swap import host, swap
from ._versions import class_name, outside

CLASSES = ("sparsify.sparse_coder:SparseCoder",)
GRADIENTS = ("exact", "compat")
ACTIVATIONS = ("topk", "groupmax")


def why_not(module: nn.Module) -> str | None:
    """None for a `SparseCoder` of a known version with a known activation."""
    if class_name(module) not in CLASSES:
        return f"{class_name(module)} is not {CLASSES[0]}"
    if reason := outside("eai-sparsify", (1, 1), (2,)):
        return reason
    if type(module.encoder) is not nn.Linear:
        return f"encoder is a {type(module.encoder).__name__}, expected nn.Linear"
    activation = module.cfg.activation  # pyright: ignore[reportAttributeAccessIssue]
    if activation not in ACTIVATIONS:
        return f"activation is {activation!r}, expected 'topk' or 'groupmax'"
    return None


def apply(module: nn.Module, gradients: str = "exact") -> Callable[[], None]:
    """Replace encode, decode and forward.

    Raises:
        ArgumentError: `gradients` is neither "exact" nor "compat".
    """
    if gradients not in GRADIENTS:
        raise ArgumentError(f"gradients = {gradients!r}, expected 'exact' or 'compat'")
    exact = gradients == "exact"
    return swap(module, {"encode": _encode[exact], "decode": _decode, "forward": _forward[exact]})


def _fits(self: Any, x: Tensor) -> bool:
    """Whether the fast path means what the host's does for this input; else the host runs."""
    if x.dim() != 2 or not x.is_floating_point() or self.encoder.bias is None:
        return False
    cfg = self.cfg
    return cfg.activation == "topk" or (cfg.activation == "groupmax" and self.num_latents % cfg.k == 0)


def _selected(self: Any, x: Tensor, exact: bool, *more: TopK) -> tuple[SparseCodes, ...]:
    """Codes of the activation function, and of further selections, of (centred) inputs; top-k ones in one pass. With
    sparsify's gradients values below 0 are kept, so that the encoder has a derivative there; `_acts` turns them into 0
    behind its back."""
    weight, bias, k = self.encoder.weight, self.encoder.bias, self.cfg.k
    grouped = self.cfg.activation == "groupmax"
    wanted = tuple(replace(each, relu=exact) for each in (*(() if grouped else (TopK(k),)), *more))
    found = encode(x, weight, bias, wanted) if wanted else ()
    return (group_max(x, weight, bias, k, exact), *found) if grouped else found


def _acts(codes: SparseCodes, exact: bool) -> Tensor:
    values = codes.values
    return values if exact else values + (values.relu() - values).detach()


def _make_encode(exact: bool) -> Callable[..., Any]:
    def encode(self: Any, x: Tensor) -> Any:
        """As the host's; `pre_acts` is computed when it is read."""
        if not _fits(self, x):
            return host(self).encode(self, x)
        inside = x if self.cfg.transcode else x - self.b_dec
        (codes,) = _selected(self, inside, exact)
        return _of_host(self, "EncoderOutput")(
            _acts(codes, exact), codes.indices.long(), _pre_acts(self, inside, exact)
        )

    return encode


def _pre_acts(self: Any, inside: Tensor, exact: bool) -> Tensor:
    weight, bias = self.encoder.weight, self.encoder.bias

    def compute() -> Tensor:
        dense = functional.relu(functional.linear(inside, weight, bias))
        return dense if exact else dense.detach()

    return Later.of(compute, (len(inside), self.num_latents), weight, weight=weight)


def _decode(self: Any, top_acts: Tensor, top_indices: Tensor) -> Tensor:
    """Σ acts · rows of W_dec + b_dec; gradients of acts at 0 too."""
    if self.W_dec is None or top_acts.dim() != 2:
        return host(self).decode(self, top_acts, top_indices)
    return decode_all_slots(top_acts.to(self.dtype), top_indices, self.W_dec) + self.b_dec


def _make_forward(exact: bool) -> Callable[..., Any]:
    def forward(
        self: Any,
        x: Tensor,
        y: Tensor | None = None,
        *,
        dead_mask: Tensor | None = None,
        total_variance: Tensor | None = None,
    ) -> Any:
        """As the host's, with all its top-k selections made in one pass over x W_encᵀ."""
        if not _fits(self, x) or self.W_dec is None:
            return host(self).forward(self, x, y, dead_mask=dead_mask, total_variance=total_variance)
        with torch.autocast("cuda", torch.bfloat16, enabled=x.is_cuda and torch.cuda.is_bf16_supported()):
            return _forward_pass(self, x, y, dead_mask, total_variance, exact)

    return forward


def _forward_pass(
    self: Any, x: Tensor, y: Tensor | None, dead_mask: Tensor | None, total_variance: Tensor | None, exact: bool
) -> Any:
    inside = x if self.cfg.transcode else x - self.b_dec
    y = x if y is None else y
    n_dead = 0 if dead_mask is None else int(dead_mask.sum())
    k_aux = min(y.shape[-1] // 2, n_dead)
    selections = []
    if n_dead:
        selections.append(TopK(k_aux, among=dead_mask))
    if self.cfg.multi_topk:
        selections.append(TopK(4 * self.cfg.k))
    codes, *more = _selected(self, inside, exact, *selections)
    top_acts, top_indices = _acts(codes, exact), codes.indices.long()

    sae_out = self.decode(top_acts, top_indices)
    if self.W_skip is not None:
        sae_out = sae_out + x.to(self.dtype) @ self.W_skip.mT
    e = y - sae_out
    if total_variance is None:
        total_variance = (y - y.mean(0)).pow(2).sum()

    auxk_loss = multi_topk_fvu = sae_out.new_tensor(0.0)
    if n_dead:
        aux = more.pop(0)
        e_hat = decode_all_slots(_cut(_acts(aux, exact), exact).to(self.dtype), aux.indices, self.W_dec)
        scale = min(n_dead / (y.shape[-1] // 2), 1.0)
        auxk_loss = scale * (e_hat - e.detach()).pow(2).sum() / total_variance
    fvu = e.pow(2).sum() / total_variance
    if self.cfg.multi_topk:
        wide = more.pop(0)
        top_acts, top_indices = _cut(_acts(wide, exact), exact), wide.indices.long()
        sae_out = self.decode(top_acts, top_indices)  # with Multi-TopK, the host returns this one
        multi_topk_fvu = (sae_out - y).pow(2).sum() / total_variance
    return _of_host(self, "ForwardOutput")(sae_out, top_acts, top_indices, fvu, auxk_loss, multi_topk_fvu)


def _cut(acts: Tensor, exact: bool) -> Tensor:
    """sparsify's encoder drops what flows back into `pre_acts`."""
    return acts if exact else acts.detach()


_encode = {exact: _make_encode(exact) for exact in (True, False)}
_forward = {exact: _make_forward(exact) for exact in (True, False)}


def _of_host(self: Any, name: str) -> Any:
    """What the host's module calls so: `EncoderOutput`, `ForwardOutput`."""
    return vars(sys.modules[host(self).__module__])[name]
