"""circuit-tracer's per-layer transcoders: JumpReLU, ReLU and TopK, with or without a skip; and sets of them.

`encode_sparse` and `decode_sparse`, on which attribution stands, and `forward` never hold dense acts; `encode` gives
dense acts that remember their codes, so that `decode` is sparse. Weights that are read from disk are read once a call,
as in the host. The host's TopK keeps the signs of what it selects, and its JumpReLU those of acts above a threshold
below 0. Where the threshold wants its straight-through gradient the host's own path runs. Comparisons are made in
float32 before rounding: in 16 bits a pre-act within half a step of its threshold may fall on the other side of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..codes import SparseCodes
from ..ops import Selection, Threshold, TopK, decode, encode
from ._acts import codes_of, dense_acts
from ._all_slots import decode_codes_all_slots
from ._remembered import decode_remembered
from ._swap import host, swap
from ._versions import class_name, outside

MODULE = "circuit_tracer.transcoder."
TRANSCODER = MODULE + "single_layer_transcoder:SingleLayerTranscoder"
SET = MODULE + "single_layer_transcoder:TranscoderSet"
CLASSES = (TRANSCODER, SET)
_JUMPRELU = MODULE + "activation_functions:JumpReLU"
_TOPK = MODULE + "activation_functions:TopK"


def why_not(module: Any) -> str | None:
    """None for a transcoder, or a set of them, of a known version, with an activation that is known."""
    name = class_name(module)
    if name not in CLASSES:
        return f"{name} is none of {', '.join(known.rpartition(':')[2] for known in CLASSES)}"
    if reason := outside("circuit-tracer", (0, 5), (0, 6)):
        return reason
    if name == SET:
        reasons = [(layer, why_not(each)) for layer, each in enumerate(module.transcoders)]
        return next((f"layer {layer}: {reason}" for layer, reason in reasons if reason), None)
    if not _is_relu(module.activation_function) and class_name(module.activation_function) not in (_JUMPRELU, _TOPK):
        return f"activation_function is {_shown(module.activation_function)}, expected ReLU, JumpReLU or TopK"
    return None


def apply(module: Any) -> Callable[[], None]:
    """A transcoder: replace encode, decode, forward, encode_sparse and decode_sparse. A set: patch its transcoders."""
    if class_name(module) == TRANSCODER:
        return swap(module, _METHODS)
    from .patch import patch

    fresh = [each for each in module.transcoders if host(each) is type(each)]  # the others were patched by themselves
    handles = [patch(each) for each in fresh]

    def undo() -> None:
        for handle in handles:
            handle.undo()

    return undo


def _is_relu(activation: Any) -> bool:
    return type(activation) is nn.ReLU or activation in (functional.relu, torch.relu)


def _shown(activation: Any) -> str:
    return getattr(activation, "__name__", None) or f"a {type(activation).__name__}"


def _heard(activation: Any) -> bool:
    """Somebody listens at it."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(activation, name, None) for name in hooks)


def _selection(self: Any) -> Selection | None:
    """What the activation function keeps; None where the host has to say."""
    activation = self.activation_function
    name = class_name(activation)
    if _heard(activation):
        return None
    if _is_relu(activation):
        return Threshold(0.0)
    if name == _TOPK:
        return TopK(int(activation.k), relu=False)
    if name != _JUMPRELU:
        return None
    theta = activation.threshold
    if theta.requires_grad and torch.is_grad_enabled():
        return None
    if theta.dim() and theta.shape != (self.d_transcoder,):
        return None
    return Threshold(theta.detach())


def _codes(self: Any, x: Tensor, W_enc: Tensor) -> SparseCodes | None:
    """Of the activation function; None where the host has to compute it."""
    selection = _selection(self)
    if selection is None or x.dim() < 1 or x.numel() == 0 or not x.is_floating_point():
        return None
    return encode(x.to(W_enc.dtype), W_enc, self.b_enc, selection)


def _encode(self: Any, input_acts: Tensor, apply_activation_function: bool = True) -> Tensor:
    """As the host's; acts remember their codes."""
    if not apply_activation_function or _selection(self) is None:
        return host(self).encode(self, input_acts, apply_activation_function)
    codes = _codes(self, input_acts, self.W_enc)
    return host(self).encode(self, input_acts) if codes is None else dense_acts(codes)


def _decode(self: Any, acts: Tensor, input_acts: Tensor | None = None) -> Tensor:
    """From the codes that the acts remember; the host's own path for any others."""
    codes = codes_of(acts)
    if codes is None:
        return host(self).decode(self, acts, input_acts)
    return _finished(self, decode_remembered(acts, codes, self.W_dec), input_acts)


def _finished(self: Any, y: Tensor, input_acts: Tensor | None) -> Tensor:
    """With b_dec and the skip."""
    y = y + self.b_dec
    if self.W_skip is None:
        return y
    assert input_acts is not None, "Transcoder has skip connection but no input_acts were provided"  # the host's
    return y + self.compute_skip(input_acts)


def _forward(self: Any, input_acts: Tensor) -> Tensor:
    """encode and decode without dense acts between them."""
    codes = None if _selection(self) is None else _codes(self, input_acts, self.W_enc)
    if codes is None:
        return host(self).forward(self, input_acts)
    return _finished(self, decode(codes, self.W_dec), input_acts)


def _encode_sparse(self: Any, input_acts: Tensor, zero_positions: slice = slice(0, 1)) -> tuple[Tensor, Tensor]:
    """As the host's: torch's sparse acts, coalesced, and the rows of W_enc of its entries, in their order."""
    if _selection(self) is None or input_acts.dim() != 2 or not isinstance(zero_positions, slice):
        return host(self).encode_sparse(self, input_acts, zero_positions)
    W_enc = self.W_enc
    codes = _codes(self, input_acts, W_enc)
    if codes is None:
        return host(self).encode_sparse(self, input_acts, zero_positions)
    kept = torch.ones(codes.n_rows, dtype=torch.bool, device=input_acts.device)
    kept[zero_positions] = False
    rows, latents, values = codes.rows(), codes.indices.flatten().long(), codes.values.flatten()
    slots = (kept[rows] & (values != 0)).nonzero().squeeze(1)
    places = rows[slots] * codes.d_sae + latents[slots]
    if not bool((places.diff() > 0).all()):  # latents of a row come in any order
        slots = slots[places.argsort()]
    acts = torch.sparse_coo_tensor(
        torch.stack([rows[slots], latents[slots]]),
        values[slots],
        (codes.n_rows, codes.d_sae),
        check_invariants=False,
        is_coalesced=True,
    )
    return acts, W_enc[latents[slots]]


def _decode_sparse(self: Any, sparse_acts: Tensor, input_acts: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """As the host's: the reconstruction, and the rows of W_dec of all entries times these. Each is made from W_dec, in
    one pass, where the host makes the first from the second."""
    coalesced = sparse_acts.is_sparse and sparse_acts.dim() == 2 and sparse_acts.is_coalesced()
    if not coalesced or self.lazy_decoder or not sparse_acts.dtype == self.W_dec.dtype == self.dtype:
        return host(self).decode_sparse(self, sparse_acts, input_acts)
    (rows, latents), values, W_dec = sparse_acts.indices(), sparse_acts.values(), self.W_dec
    n = sparse_acts.shape[0]
    offsets = torch.searchsorted(rows, torch.arange(n + 1, device=rows.device))
    codes = SparseCodes(values, latents.int(), self.d_transcoder, offsets)
    scaled = W_dec.index_select(0, latents)
    if scaled.requires_grad or values.requires_grad:
        scaled = scaled * values[:, None]
    else:
        scaled.mul_(values[:, None])
    y = decode_codes_all_slots(codes, W_dec)
    if self.W_skip is not None:
        assert input_acts is not None, "Transcoder has skip connection but no input_acts were provided"  # the host's
        y = y + self.compute_skip(input_acts)
    return y + self.b_dec, scaled


_METHODS = {
    "encode": _encode,
    "decode": _decode,
    "forward": _forward,
    "encode_sparse": _encode_sparse,
    "decode_sparse": _decode_sparse,
}
