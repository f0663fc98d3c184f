"""SAELens' SAEs and transcoders: TopK, BatchTopK, Matryoshka, JumpReLU, standard, gated.

`encode` still returns dense acts, which remember their codes, so that `decode` is sparse; `forward` and the training
passes never make them, unless their result holds them. Wherever somebody listens at `hook_sae_acts_pre` or
`hook_sae_acts_post`, has replaced a method on the SAE itself, or has the error term on, the host's own path runs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..codes import SparseCodes
from ..ops import decode
from . import _sae_lens_codes as codes_of_kind
from . import _sae_lens_penalised as penalised
from ._acts import codes_of, dense_acts
from ._layout import Place, lay
from ._remembered import decode_remembered
from ._sae_lens_training import batch_topk_pass, matryoshka_pass, topk_pass
from ._swap import host, in_turn, swap
from ._versions import class_name, outside

Codes = Callable[[Any, Tensor], SparseCodes]
MODULE = "sae_lens.saes."


def _only_topk(self: Any, inside: Tensor) -> SparseCodes:
    return codes_of_kind.topk(self, inside)[0]


# class → how it encodes
INFERENCE: Mapping[str, Codes] = {
    "standard_sae:StandardSAE": codes_of_kind.relu,
    "jumprelu_sae:JumpReLUSAE": codes_of_kind.jumprelu,
    "gated_sae:GatedSAE": codes_of_kind.gated,
    "topk_sae:TopKSAE": _only_topk,
    "transcoder:Transcoder": codes_of_kind.relu,
    "transcoder:SkipTranscoder": codes_of_kind.relu,
    "transcoder:JumpReLUTranscoder": codes_of_kind.jumprelu,
    "transcoder:JumpReLUSkipTranscoder": codes_of_kind.jumprelu,
}
# class → how it encodes, and its training pass
TRAINING: Mapping[str, tuple[Codes, Callable[..., Any]]] = {
    "topk_sae:TopKTrainingSAE": (_only_topk, topk_pass),
    "batchtopk_sae:BatchTopKTrainingSAE": (codes_of_kind.batch_topk, batch_topk_pass),
    "matryoshka_batchtopk_sae:MatryoshkaBatchTopKTrainingSAE": (codes_of_kind.batch_topk, matryoshka_pass),
}
# the same for those whose latents are active as they please: half of all, at the start
PENALISED: Mapping[str, tuple[Callable[..., penalised.Arithmetic], Callable[..., Any]]] = {
    "standard_sae:StandardTrainingSAE": (penalised.standard, penalised.standard_pass),
    "gated_sae:GatedTrainingSAE": (penalised.gated, penalised.gated_pass),
    "jumprelu_sae:JumpReLUTrainingSAE": (penalised.jumprelu, penalised.jumprelu_pass),
}
CLASSES = tuple(MODULE + name for name in (*INFERENCE, *TRAINING, *PENALISED))
# what a class uses for its activation; anything else was put there by somebody
_ACTIVATIONS = ("ReLU", "TopK", "BatchTopK")


def why_not(module: nn.Module) -> str | None:
    """None for the classes above, of a known version, with the activation they were built with."""
    name = class_name(module)
    if not name.startswith(MODULE) or name not in CLASSES:
        return f"{name} is none of {', '.join(known.rpartition(':')[2] for known in CLASSES)}"
    if reason := outside("sae-lens", (6, 20), (7,)):
        return reason
    activation = type(getattr(module, "activation_fn", None)).__name__
    if activation not in _ACTIVATIONS:
        return f"activation_fn is a {activation}, expected {' or '.join(_ACTIVATIONS)}"
    return None


def apply(module: nn.Module) -> Callable[[], None]:
    """Replace encode, decode, forward, and the training pass where there is one; lay W_enc by latents."""
    lay_back = _lay_by_rows(module)
    return in_turn(swap(module, _METHODS[class_name(module).removeprefix(MODULE)]), lay_back)


def _lay_by_rows(module: Any) -> Callable[[], None]:
    """W_enc (d_in, d_sae), by columns in the host's memory; → what puts it back."""
    return lay([Place(module, "W_enc", (1, module.W_enc.shape[0]))])


def _load_state_dict(self: Any, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
    """The host's; weights that it takes over as they are in memory (`assign`) are laid like those before."""
    by_rows = self.W_enc.stride(0) == 1
    found = host(self).load_state_dict(self, state_dict, strict=strict, assign=assign)
    if assign and by_rows:
        _lay_by_rows(self)
    return found


def _saving(name: str) -> Callable[..., None]:
    def process(self: Any, state_dict: dict[str, Any]) -> None:
        """The host's; then W_enc as safetensors takes it, which knows nothing of strides."""
        getattr(host(self), name)(self, state_dict)
        state_dict["W_enc"] = state_dict["W_enc"].contiguous()

    return process


def _deep_copy(self: Any, memo: dict[int, Any]) -> Any:
    """One of the host's class, as `swap` has it, and as the host lays it."""
    patched = type(self)
    self.__class__ = host(self)
    try:
        other = copy.deepcopy(self, memo)
    finally:
        self.__class__ = patched
    if other.W_enc is not self.W_enc:  # `memo` may say that both have the same weights
        with torch.inference_mode(other.W_enc.is_inference()):
            other.W_enc.data = other.W_enc.data.contiguous()
    return other


_MEMORY: dict[str, Callable[..., Any]] = {
    "load_state_dict": _load_state_dict,
    "__deepcopy__": _deep_copy,
    "process_state_dict_for_saving": _saving("process_state_dict_for_saving"),
}
_MEMORY_IN_TRAINING = {
    **_MEMORY,
    "process_state_dict_for_saving_inference": _saving("process_state_dict_for_saving_inference"),
}


_BETWEEN = ("hook_sae_acts_pre", "hook_sae_acts_post")
_INSIDE = ("encode", "decode", "encode_with_hidden_pre", "calculate_aux_loss")


def quiet(self: Any) -> bool:
    """Whether nobody looks at, or changes, what is between encoder and decoder."""
    return not (any(_heard(getattr(self, name)) for name in _BETWEEN) or any(name in vars(self) for name in _INSIDE))


def _heard(point: nn.Module) -> bool:
    return bool(point._forward_hooks or point._forward_pre_hooks or point._backward_hooks or point._backward_pre_hooks)


def _sparse_wanted(self: Any) -> bool:
    """The host was asked for torch's sparse acts."""
    return bool(getattr(self.activation_fn, "use_sparse_activations", False))


def _make_encode(codes: Codes) -> Callable[..., Any]:
    def encode(self: Any, x: Tensor) -> Tensor:
        """Dense acts, as the host's, that remember their codes."""
        if not quiet(self) or _sparse_wanted(self):
            return host(self).encode(self, x)
        acts = codes_of_kind.rescaled(self, codes(self, self.process_sae_in(x)))
        return self.hook_sae_acts_post(dense_acts(codes_of_kind.as_acts(self, acts)))

    return encode


def _decode(self: Any, feature_acts: Tensor) -> Tensor:
    """From the codes that the acts remember; the host's own path for any others, and for rescaled ones that want a
    gradient, which they get through their norms too."""
    codes = codes_of(feature_acts)
    if codes is None or (codes_of_kind.rescales(self) and torch.is_grad_enabled() and feature_acts.requires_grad):
        return host(self).decode(self, feature_acts)
    if codes_of_kind.rescales(self):
        return decode_codes(self, _unscaled(self, codes))
    return _finished(self, decode_remembered(feature_acts, codes, self.W_dec) + self.b_dec)


def decode_codes(self: Any, codes: SparseCodes) -> Tensor:
    """As the host's decode of codes that are not rescaled, with its hooks, normalisation and reshaping."""
    return _finished(self, decode(codes, self.W_dec) + self.b_dec)


def _finished(self: Any, out: Tensor) -> Tensor:
    """What follows the product in the host's decode."""
    out = self.hook_sae_recons(out)
    if not isinstance_of(self, "transcoder:Transcoder"):
        out = self.reshape_fn_out(self.run_time_activation_norm_fn_out(out), self.d_head)
    return out


def _unscaled(self: Any, codes: SparseCodes) -> SparseCodes:
    """Acts over ‖W_dec_i‖."""
    return codes.with_values(codes.values * (1 / self.W_dec.norm(dim=-1))[codes.indices.long()])


def isinstance_of(self: Any, name: str) -> bool:
    """Whether a class of SAELens, by name, is among those of a module."""
    return any(f"{cls.__module__}:{cls.__qualname__}" == MODULE + name for cls in type(self).__mro__)


def _make_forward(codes: Codes) -> Callable[..., Any]:
    def forward(self: Any, x: Tensor) -> Tensor:
        """encode and decode without dense acts between them."""
        if not quiet(self) or getattr(self, "use_error_term", False) or _sparse_wanted(self):
            return host(self).forward(self, x)
        return self.hook_sae_output(decode_codes(self, codes(self, self.process_sae_in(x))))

    return forward


def _make_transcoder_forward(codes: Codes, skip: bool) -> Callable[..., Any]:
    def forward(self: Any, x: Tensor) -> Tensor:
        """encode and decode without dense acts between them, and the skip."""
        if not quiet(self):
            return host(self).forward(self, x)
        out = decode_codes(self, codes(self, self.process_sae_in(x)))
        return out + x @ self.W_skip.T.to(x.device) if skip else out

    return forward


def _make_penalised(arithmetic: Callable[..., penalised.Arithmetic]) -> dict[str, Callable[..., Any]]:
    def encode(self: Any, x: Tensor) -> Tensor:
        """Dense acts, as the host's, that remember their codes, where these are few."""
        if not quiet(self):
            return host(self).encode(self, x)
        return self.hook_sae_acts_post(penalised.encoded(self, self.process_sae_in(x), arithmetic(self, loss=False)))

    def forward(self: Any, x: Tensor) -> Tensor:
        """encode and decode without dense acts between them."""
        if not quiet(self) or self.use_error_term:
            return host(self).forward(self, x)
        out = penalised.reconstructed(self, x, self.process_sae_in(x), arithmetic(self, loss=False))
        return self.hook_sae_output(_finished(self, out + self.b_dec))

    return {"encode": encode, "decode": _decode, "forward": forward}


def _make_pass(training_pass: Callable[..., Any]) -> Callable[..., Any]:
    def training_forward_pass(self: Any, step_input: Any) -> Any:
        """Loss and its terms as the host's; `hidden_pre` is computed when it is read."""
        if not quiet(self) or self.use_error_term:
            return host(self).training_forward_pass(self, step_input)
        return training_pass(self, step_input)

    return training_forward_pass


def _inference_methods(name: str, codes: Codes) -> dict[str, Callable[..., Any]]:
    forward = _make_forward(codes)
    if name.startswith("transcoder:"):
        forward = _make_transcoder_forward(codes, "Skip" in name)
    return {"encode": _make_encode(codes), "decode": _decode, "forward": forward}


_METHODS: dict[str, dict[str, Callable[..., Any]]] = {
    **{name: _inference_methods(name, codes) | _MEMORY for name, codes in INFERENCE.items()},
    **{
        name: _inference_methods(name, codes)
        | {"training_forward_pass": _make_pass(training_pass)}
        | _MEMORY_IN_TRAINING
        for name, (codes, training_pass) in TRAINING.items()
    },
    **{
        name: _make_penalised(arithmetic) | {"training_forward_pass": _make_pass(training_pass)} | _MEMORY_IN_TRAINING
        for name, (arithmetic, training_pass) in PENALISED.items()
    },
}
