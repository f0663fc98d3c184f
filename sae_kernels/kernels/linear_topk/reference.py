"""`linear_topk` with the dense pre-acts in sight."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad

from .._reference import always as why_not
from .._reference import pre_acts
from ..topk import reference as topk

__all__ = ["run", "why_not"]


def run(x: Tensor, W: Tensor, b: Tensor | None, ks: list[int], relus: list[bool], among: list[Tensor]) -> list[Tensor]:
    """See `sae_kernels.kernels.linear_topk`."""
    z = pre_acts(x, W, b)
    out: list[Tensor] = []
    for k, relu, mask in zip(ks, relus, among, strict=True):
        if mask.numel() == 0:
            values, indices = topk.run(z, k)
        else:
            allowed = mask.nonzero().squeeze(1)
            values, picked = topk.run(z[:, allowed], min(k, allowed.numel()))
            missing = (0, k - values.shape[1])
            indices = pad(allowed.int()[picked.long()], missing)
            values = pad(values, missing)
        out += [(values.relu() if relu else values).to(x.dtype), indices]
    return out
