"""dictionary_learning's training steps of the top-k family, on codes.

Terms, their weights, the counters and the threshold are the host's: squared error summed over features and averaged
over tokens; AuxK of what is left, over its variance, in float32. A latent is dead if it has not fired for long enough,
this step included, so whom AuxK chooses from is known when the step's own codes are.
"""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import torch
from torch import Tensor

from ..codes import SparseCodes
from ..ops import TopK, decode, encode, prefix_decode
from . import _dictionary_learning_codes as kinds
from ._acts import dense_acts

LossLog = namedtuple("LossLog", ["x", "x_hat", "f", "losses"])


def topk_loss(self: Any, x: Tensor, step: int, logging: bool) -> Any:
    """TopKTrainer."""
    ae = self.ae
    codes = kinds.topk(ae, x)
    if step > self.threshold_start_step:
        self.update_threshold(codes.values)
    W = kinds.decoder(ae)
    x_hat = kinds.biased(ae, decode(codes, W))
    self.effective_l0 = codes.values.shape[1]
    _count(self, codes.indices.flatten().long(), len(x))
    e = x - x_hat
    l2_loss = e.pow(2).sum(dim=-1).mean()
    auxk_loss = _auxiliary_loss(self, x, e.detach(), W) if self.auxk_alpha > 0 else torch.zeros_like(l2_loss)
    loss = l2_loss + self.auxk_alpha * auxk_loss
    return _logged(x, x_hat, codes, l2_loss, auxk_loss, loss) if logging else loss


def batch_topk_loss(self: Any, x: Tensor, step: int, logging: bool) -> Any:
    """BatchTopKTrainer."""
    ae = self.ae
    codes = _batch_codes(self, x, step)
    W = kinds.decoder(ae)
    x_hat = kinds.biased(ae, decode(codes, W))
    e = x - x_hat
    _count(self, codes.fired(), len(x))
    l2_loss = e.pow(2).sum(dim=-1).mean()
    auxk_loss = _auxiliary_loss(self, x, e.detach(), W)
    loss = l2_loss + self.auxk_alpha * auxk_loss
    return _logged(x, x_hat, codes, l2_loss, auxk_loss, loss) if logging else loss


def matryoshka_loss(self: Any, x: Tensor, step: int, logging: bool) -> Any:
    """MatryoshkaBatchTopKTrainer: the reconstructions of all active groups in one pass over the codes."""
    ae = self.ae
    codes = _batch_codes(self, x, step)
    W = kinds.decoder(ae)
    ends = [int(end) for end in ae.group_indices[1 : ae.active_groups + 1]]
    each = kinds.biased(ae, prefix_decode(codes, W, None, ends))
    weights = each.new_tensor(self.group_weights[: len(ends)])
    l2_losses = (x - each).pow(2).sum(dim=-1).mean(dim=-1) * weights
    l2_loss = l2_losses.mean()
    _count(self, codes.fired(), len(x))
    auxk_loss = _auxiliary_loss(self, x, (x - each[-1]).detach(), W)
    loss = l2_loss + self.auxk_alpha * auxk_loss
    if not logging:
        return loss
    logged = _logged(x, each[-1], codes, l2_loss, auxk_loss, loss)
    logged.losses["min_l2_loss"] = l2_losses.min().item()
    logged.losses["max_l2_loss"] = l2_losses.max().item()
    return logged


def _batch_codes(self: Any, x: Tensor, step: int) -> SparseCodes:
    """The codes of a step, with what the trainer notes of them."""
    codes = kinds.batch_topk(self.ae, x)
    if step > self.threshold_start_step:
        self.update_threshold(codes.values)
    self.effective_l0 = self.k
    return codes


def _count(self: Any, fired: Tensor, n: int) -> None:
    """Tokens since each latent fired: n more, but for those that `fired`, by mask or by number."""
    self.num_tokens_since_fired += n
    self.num_tokens_since_fired[fired] = 0


def _auxiliary_loss(self: Any, x: Tensor, residual: Tensor, W: Tensor) -> Tensor:
    """Mean over tokens of ‖residual - x̂_aux‖², over the residual's variance; in float32, whatever the dtypes."""
    dead = self.num_tokens_since_fired >= self.dead_feature_threshold
    self.dead_features = int(dead.sum())
    if not self.dead_features:
        self.pre_norm_auxk_loss = -1
        return residual.new_zeros(())
    aux = _of_the_dead(self, x, dead)
    error = (residual.float() - decode(aux, W).float()).pow(2).sum(dim=-1).mean()
    self.pre_norm_auxk_loss = error
    centred = residual.float() - residual.mean(dim=0, keepdim=True).float()
    return (error / centred.pow(2).sum(dim=-1).mean()).nan_to_num(0.0)


def _of_the_dead(self: Any, x: Tensor, dead: Tensor) -> SparseCodes:
    """The k_aux largest of each row among the dead, of which the trainer knows how many.

    They are encoded as a dictionary of their own. To select them in the step's one pass over x W_encᵀ would not be
    exact where some of the dead come back to life in this step, and took longer with up to half of 8192 dead.
    """
    W, b = kinds.encoder(self.ae)
    latents = dead.nonzero().squeeze(1)
    bias = None if b is None else b.index_select(0, latents)
    k = min(self.top_k_aux, self.dead_features)
    codes = encode(kinds.inside(self.ae, x), W.index_select(0, latents), bias, TopK(k))
    return SparseCodes(codes.values, latents.int()[codes.indices.long()], self.ae.dict_size)


def _logged(x: Tensor, x_hat: Tensor, codes: SparseCodes, l2_loss: Tensor, auxk_loss: Tensor, loss: Tensor) -> LossLog:
    losses = {"l2_loss": l2_loss.item(), "auxk_loss": auxk_loss.item(), "loss": loss.item()}
    return LossLog(x, x_hat, dense_acts(codes), losses)
