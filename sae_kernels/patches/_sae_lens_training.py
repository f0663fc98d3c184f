"""SAELens' training passes of the top-k family, on codes.

Terms and their weights are the host's: MSE summed over features and averaged over tokens; AuxK with the signs of the
dead latents' pre-acts kept, without variance normalisation, scaled down where fewer than k_aux latents are dead.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from ..codes import SparseCodes
from ..ops import TopK, decode, prefix_decode
from . import _sae_lens_codes as kinds
from ._later import Later
from ._later_acts import LaterActs
from ._swap import host


def topk_pass(self: Any, step_input: Any) -> Any:
    """TopKTrainingSAE: the k and the k_aux largest in one pass over x W_enc."""
    inside = self.process_sae_in(step_input.sae_in)
    wanted = _aux_selection(self, step_input)
    codes, *aux = kinds.topk(self, inside, *wanted)
    return _finish(self, step_input, inside, codes, aux[0] if aux else None)


def batch_topk_pass(self: Any, step_input: Any) -> Any:
    """BatchTopKTrainingSAE, with its running threshold."""
    inside = self.process_sae_in(step_input.sae_in)
    codes = kinds.batch_topk(self, inside)
    output = _finish(self, step_input, inside, codes, _aux_codes(self, step_input, inside))
    _update_threshold(self, codes)
    output.metrics["topk_threshold"] = self.topk_threshold
    return output


def matryoshka_pass(self: Any, step_input: Any) -> Any:
    """MatryoshkaBatchTopKTrainingSAE: all inner reconstructions in one pass over the codes."""
    if self.cfg.use_matryoshka_aux_loss or step_input.sae_in.dim() != 2:
        return host(self).training_forward_pass(self, step_input)
    inside = self.process_sae_in(step_input.sae_in)
    codes = kinds.batch_topk(self, inside)
    output = _finish(self, step_input, inside, codes, _aux_codes(self, step_input, inside))
    _update_threshold(self, codes)
    output.metrics["topk_threshold"] = self.topk_threshold
    widths = list(self.cfg.matryoshka_widths[:-1])
    if widths:
        inner = prefix_decode(codes, self.W_dec, None, widths) + self.b_dec
        for width, reconstruction in zip(widths, inner, strict=True):
            given = self.run_time_activation_norm_fn_out(reconstruction)
            loss = self.mse_loss_fn(given, step_input.sae_in).sum(dim=-1).mean()
            output.losses[f"inner_mse_loss_{width}"] = loss
            output.loss = output.loss + loss
    return output


def _finish(self: Any, step_input: Any, inside: Tensor, codes: SparseCodes, aux: SparseCodes | None) -> Any:
    """Decode, the losses, and the host's TrainStepOutput."""
    out = self.hook_sae_recons(decode(codes, self.W_dec) + self.b_dec)  # in autocast of b_dec's dtype, as the host's
    sae_out = self.reshape_fn_out(self.run_time_activation_norm_fn_out(out), self.d_head)
    mse = self.mse_loss_fn(sae_out, step_input.sae_in).sum(dim=-1).mean()
    auxiliary = _aux_loss(self, step_input, sae_out, aux)
    TrainStepOutput = vars(sys.modules["sae_lens.saes.sae"])["TrainStepOutput"]
    return TrainStepOutput(
        sae_in=step_input.sae_in,
        sae_out=sae_out,
        feature_acts=_as_host(self, codes),
        hidden_pre=_hidden_pre(self, inside),
        loss=mse + auxiliary,
        losses={"mse_loss": mse, "auxiliary_reconstruction_loss": auxiliary},
    )


def _aux_loss(self: Any, step_input: Any, sae_out: Tensor, aux: SparseCodes | None) -> Tensor:
    if aux is None:
        return sae_out.new_tensor(0.0)
    if self.cfg.normalize_activations in ("constant_norm_rescale", "layer_norm"):
        raise ValueError(  # the host's
            "TopK auxiliary loss does not support activation normalization "
            f"(normalize_activations={self.cfg.normalize_activations!r})."
        )
    residual = (step_input.sae_in - sae_out).detach()
    recons = self.reshape_fn_out(decode(aux, self.W_dec, None), self.d_head)
    scale = min(int(step_input.dead_neuron_mask.sum()) / (step_input.sae_in.shape[-1] // 2), 1.0)
    return self.cfg.aux_loss_coefficient * scale * (recons - residual).pow(2).sum(dim=-1).mean()


def _aux_selection(self: Any, step_input: Any) -> tuple[TopK, ...]:
    """The k_aux largest pre-acts of the dead, with their signs; nothing where none is dead."""
    dead = step_input.dead_neuron_mask
    n_dead = 0 if dead is None else int(dead.sum())
    k_aux = min(step_input.sae_in.shape[-1] // 2, n_dead)
    return (TopK(k_aux, relu=False, among=dead),) if k_aux else ()


def _aux_codes(self: Any, step_input: Any, inside: Tensor) -> SparseCodes | None:
    wanted = _aux_selection(self, step_input)
    return kinds.selected(self, inside, wanted)[0] if wanted else None


@torch.no_grad()
def _update_threshold(self: Any, codes: SparseCodes) -> None:
    self.update_topk_threshold(kinds.rescaled(self, codes.detach()).values)


def _as_host(self: Any, codes: SparseCodes) -> Tensor:
    """Dense acts, made if somebody reads them; torch's sparse ones where the SAE was asked for them."""
    codes = kinds.as_acts(self, codes)
    if not getattr(self.activation_fn, "use_sparse_activations", False):
        if not kinds.rescales(self):
            return LaterActs.of_codes(codes)
        return LaterActs.of_codes(codes, lambda codes: kinds.rescaled(self, codes), self.W_dec)
    codes = kinds.rescaled(self, codes)
    places = torch.stack([codes.rows(), codes.indices.flatten().long()])
    shape = (codes.n_rows, codes.d_sae)
    sparse = torch.sparse_coo_tensor(places, codes.values.flatten(), shape, check_invariants=False)
    return sparse.reshape(*codes.lead_shape, codes.d_sae) if len(codes.lead_shape) != 1 else sparse


def _hidden_pre(self: Any, inside: Tensor) -> Tensor:
    """Dense pre-acts, computed if somebody reads them."""
    W_enc, b_enc, W_dec = self.W_enc, self.b_enc, self.W_dec
    rescale = self.cfg.rescale_acts_by_decoder_norm

    def compute() -> Tensor:
        dense = inside @ W_enc + b_enc
        return dense * W_dec.norm(dim=-1) if rescale else dense

    return Later.of(compute, (*inside.shape[:-1], self.cfg.d_sae), W_enc, weight=W_enc)
