"""dictionary_learning's coders (TopK, BatchTopK, Matryoshka, JumpReLU, ReLU, gated) and trainers of the top-k family.

`encode` gives what the host's does, with all its flags: dense acts that remember their codes, so that `decode` is
sparse, and pre-acts that are computed when somebody looks. `forward` makes no dense acts unless it is to return them,
and a trainer's step makes none at all.

The host's `nn.Linear` weights lie in memory by columns, where a latent's row is scattered. They are laid by rows while
the coder is patched (strides change, nothing else). Where somebody else may look at the same memory they stay, and each
pass copies them; up to `FEW` tokens are the host's own then, since the copy would take longer than the dense product.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..codes import SparseCodes
from ..ops import Threshold, TopK
from . import _dictionary_learning_codes as kinds
from . import _dictionary_learning_training as training
from ._acts import codes_of, dense_acts
from ._layout import Place, lay
from ._swap import host, in_turn, swap
from ._versions import class_name, outside

FEW = 128
MODULE = "dictionary_learning."
Codes = Callable[[Any, Tensor], SparseCodes]

# class → how its forward encodes
CODERS: Mapping[str, Codes] = {
    "dictionary:AutoEncoder": kinds.relu,
    "dictionary:AutoEncoderNew": kinds.relu,
    "dictionary:GatedAutoEncoder": kinds.gated,
    "dictionary:JumpReluAutoEncoder": kinds.jumprelu,
    "trainers.top_k:AutoEncoderTopK": kinds.topk,
    "trainers.batch_top_k:BatchTopKSAE": kinds.thresholded,
    "trainers.matryoshka_batch_top_k:MatryoshkaBatchTopKSAE": kinds.thresholded,
}
# trainer → the coder that it must have, and its loss
TRAINERS: Mapping[str, tuple[str, Callable[..., Any]]] = {
    "trainers.top_k:TopKTrainer": ("trainers.top_k:AutoEncoderTopK", training.topk_loss),
    "trainers.batch_top_k:BatchTopKTrainer": ("trainers.batch_top_k:BatchTopKSAE", training.batch_topk_loss),
    "trainers.matryoshka_batch_top_k:MatryoshkaBatchTopKTrainer": (
        "trainers.matryoshka_batch_top_k:MatryoshkaBatchTopKSAE",
        training.matryoshka_loss,
    ),
}
CLASSES = tuple(MODULE + name for name in (*CODERS, *TRAINERS))


def why_not(module: Any) -> str | None:
    """None for the classes above, of a known version, with the parts they were built with."""
    name = class_name(module)
    if name not in CLASSES:
        return f"{name} is none of {', '.join(known.rpartition(':')[2] for known in CLASSES)}"
    if reason := outside("dictionary-learning", (0, 1), (0, 2)):
        return reason
    name = name.removeprefix(MODULE)
    if name in TRAINERS:
        return _why_not_trainer(module, TRAINERS[name][0])
    for part in ("encoder", "decoder"):
        kind = type(getattr(module, part, None))
        if part in module._modules and kind is not nn.Linear:
            return f"{part} is a {kind.__name__}, expected nn.Linear"
    return None


def _why_not_trainer(trainer: Any, coder: str) -> str | None:
    if class_name(trainer.ae) != MODULE + coder:
        return f"ae is a {class_name(trainer.ae)}, expected {coder.rpartition(':')[2]}"
    for name in ("loss", "get_auxiliary_loss", "update_threshold"):
        if name in vars(trainer):
            return f"{name} was replaced on the trainer itself"
    reason = why_not(trainer.ae)
    return None if reason is None else f"ae: {reason}"


def apply(module: Any) -> Callable[[], None]:
    """A coder: replace encode, decode and forward, and lay its weights by rows. A trainer: replace its loss, and patch
    its coder."""
    name = class_name(module).removeprefix(MODULE)
    if name in CODERS:
        lay_back = _lay_by_rows(module)
        return in_turn(swap(module, _METHODS[name]), lay_back)
    from .patch import patch

    own = host(module.ae) is type(module.ae)  # not patched by somebody else
    handle = patch(module.ae)
    restore = swap(module, {"loss": _LOSSES[name]})
    return in_turn(restore, handle.undo) if own else restore


def _lay_by_rows(coder: Any) -> Callable[[], None]:
    """Put `nn.Linear` weights into memory by latents; → what puts them back."""
    if hasattr(coder, "W_enc"):
        return lambda: None
    encoder, decoder = coder.encoder, coder.decoder
    return lay(
        [Place(encoder, "weight", (encoder.in_features, 1)), Place(decoder, "weight", (1, decoder.out_features))]
    )


def fits(self: Any, x: Tensor) -> bool:
    """Whether the fast path means what the host's does for this input, and pays; else the host runs."""
    if not x.is_floating_point() or x.dim() < 1 or x.numel() == 0:
        return False
    if hasattr(self, "W_enc"):
        return True
    if not _unheard(self.encoder) or not _unheard(self.decoder):
        return False
    by_rows = self.encoder.weight.stride(1) == 1 and self.decoder.weight.stride(0) == 1
    return by_rows or x.numel() > FEW * x.shape[-1]


def _unheard(part: nn.Module) -> bool:
    """Nobody listens at it, or has put something else there."""
    return type(part) is nn.Linear and not (
        part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks
    )


def _encode_relu(self: Any, x: Tensor) -> Tensor:
    """As the host's."""
    return dense_acts(kinds.relu(self, x)) if fits(self, x) else host(self).encode(self, x)


def _encode_jumprelu(self: Any, x: Tensor, output_pre_jump: bool = False) -> Any:
    """As the host's; pre-acts are computed when they are read."""
    if not fits(self, x):
        return host(self).encode(self, x, output_pre_jump=output_pre_jump)
    codes = kinds.jumprelu(self, x)
    acts = dense_acts(codes)
    return (acts, kinds.pre_acts(self, x, codes.values, relu=False)) if output_pre_jump else acts


def _encode_gated(self: Any, x: Tensor, return_gate: bool = False, normalize_decoder: bool = False) -> Any:
    """As the host's, whose own path takes acts that are scaled."""
    if normalize_decoder or not _fits_gated(self, x):
        return host(self).encode(self, x, return_gate=return_gate, normalize_decoder=normalize_decoder)
    if not return_gate:
        return dense_acts(kinds.gated(self, x))
    gate = kinds.gates(self, x)
    return dense_acts(kinds.gated(self, x, gate.detach())), dense_acts(gate)


def _fits_gated(self: Any, x: Tensor) -> bool:
    """Inside autocast the host mixes dtypes: that is left to it."""
    return fits(self, x) and not torch.is_autocast_enabled(x.device.type)


def _encode_topk(self: Any, x: Tensor, return_topk: bool = False, use_threshold: bool = False) -> Any:
    """As the host's; pre-acts are computed when they are read."""
    if not fits(self, x):
        return host(self).encode(self, x, return_topk=return_topk, use_threshold=use_threshold)
    if not return_topk:
        return dense_acts(kinds.thresholded(self, x) if use_threshold else kinds.topk(self, x))
    wanted: list[Any] = [TopK(int(self.k))]
    if use_threshold:
        wanted.append(Threshold(self.threshold.detach().clamp_min(0)))
    top, *above = kinds.selected(self, kinds.inside(self, x), *wanted)
    acts = dense_acts(above[0] if above else top)
    return acts, top.values, top.indices.long(), kinds.pre_acts(self, x, top.values)


def _encode_batch_topk(self: Any, x: Tensor, return_active: bool = False, use_threshold: bool = True) -> Any:
    """As the host's; pre-acts are computed when they are read."""
    if not _fits_batch(self, x):
        return host(self).encode(self, x, return_active=return_active, use_threshold=use_threshold)
    codes = kinds.thresholded(self, x) if use_threshold else kinds.batch_topk(self, x)
    if not return_active:
        return dense_acts(codes)
    return dense_acts(codes), codes.fired(), kinds.pre_acts(self, x, codes.values)


def _fits_batch(self: Any, x: Tensor) -> bool:
    """The host means the second axis by "latents" and the first by "tokens" in places, whatever the shape."""
    return x.dim() == 2 and int(self.k) <= self.dict_size and fits(self, x)


def _decode(self: Any, x: Tensor) -> Tensor:
    """From the codes that the acts remember; the host's own path for any others."""
    codes = codes_of(x)
    if codes is None or ("decoder" in self._modules and not _unheard(self.decoder)):
        return host(self).decode(self, x)
    return kinds.decoded(self, codes, x)


def _decode_gated(self: Any, f: Tensor, normalize_decoder: bool = False) -> Tensor:
    """As `_decode`; scaled acts are the host's."""
    return host(self).decode(self, f, normalize_decoder=True) if normalize_decoder else _decode(self, f)


def _make_forward(codes: Codes, taken: Callable[[Any, Tensor], bool]) -> Callable[..., Any]:
    def forward(self: Any, x: Tensor, output_features: bool = False, **more: Any) -> Any:
        """encode and decode, without dense acts between them unless they are asked for."""
        if not taken(self, x) or any(value is not None and value is not False for value in more.values()):
            return host(self).forward(self, x, output_features=output_features, **more)
        found = codes(self, x)
        if not output_features:
            return kinds.decoded(self, found)
        acts = dense_acts(found)
        return kinds.decoded(self, found, acts), _scaled(self, acts)

    return forward


def _scaled(self: Any, acts: Tensor) -> Tensor:
    """`AutoEncoderNew` returns its features times its decoder's norms."""
    if class_name(self) != MODULE + "dictionary:AutoEncoderNew":
        return acts
    return acts * self.decoder.weight.norm(dim=0, keepdim=True)


def _forward_ghost(self: Any, x: Tensor, output_features: bool = False, ghost_mask: Tensor | None = None) -> Any:
    """`AutoEncoder`: its ghost mode is the host's."""
    return _PLAIN(self, x, output_features, ghost_mask=ghost_mask)


def _forward_gated(self: Any, x: Tensor, output_features: bool = False, normalize_decoder: bool = False) -> Any:
    """`GatedAutoEncoder`: scaled features are the host's."""
    return _GATED(self, x, output_features, normalize_decoder=normalize_decoder)


_PLAIN = _make_forward(kinds.relu, fits)
_GATED = _make_forward(kinds.gated, _fits_gated)
_METHODS: dict[str, dict[str, Callable[..., Any]]] = {
    "dictionary:AutoEncoder": {"encode": _encode_relu, "forward": _forward_ghost},
    "dictionary:AutoEncoderNew": {"encode": _encode_relu, "forward": _PLAIN},
    "dictionary:GatedAutoEncoder": {"encode": _encode_gated, "forward": _forward_gated, "decode": _decode_gated},
    "dictionary:JumpReluAutoEncoder": {
        "encode": _encode_jumprelu,
        "forward": _make_forward(kinds.jumprelu, fits),
    },
    "trainers.top_k:AutoEncoderTopK": {"encode": _encode_topk, "forward": _make_forward(kinds.topk, fits)},
}
_METHODS["trainers.batch_top_k:BatchTopKSAE"] = {
    "encode": _encode_batch_topk,
    "forward": _make_forward(kinds.thresholded, _fits_batch),
}
_METHODS["trainers.matryoshka_batch_top_k:MatryoshkaBatchTopKSAE"] = _METHODS["trainers.batch_top_k:BatchTopKSAE"]
for _methods in _METHODS.values():
    _methods.setdefault("decode", _decode)


def _make_loss(sparse: Callable[..., Any]) -> Callable[..., Any]:
    def loss(self: Any, x: Tensor, step: int | None = None, logging: bool = False) -> Any:
        """As the host's, on codes."""
        if x.dim() != 2 or self.top_k_aux < 1 or not fits(self.ae, x) or int(self.ae.k) > self.ae.dict_size:
            return host(self).loss(self, x, step=step, logging=logging)
        return sparse(self, x, step, logging)

    return loss


_LOSSES = {name: _make_loss(sparse) for name, (_, sparse) in TRAINERS.items()}
