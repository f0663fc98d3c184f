"""The centre of a batch of rows: what b_dec starts at."""

from __future__ import annotations

import torch
from torch import Tensor

CENTRES = ("mean", "geometric_median", "zero")


def centre(rows: Tensor, how: str) -> Tensor:
    """(d,) of rows (n, d), in float32: one of `CENTRES`."""
    if how == "zero":
        return rows.new_zeros(rows.shape[-1], dtype=torch.float32)
    mean = rows.float().mean(0)
    return mean if how == "mean" else geometric_median(rows, mean)


@torch.no_grad()
def centre_pre_acts(W_enc: Tensor, b_enc: Tensor, b_dec: Tensor) -> None:
    """b_enc ← −W_enc b_dec, in place: an encoder that reads x itself begins as one that reads x − b_dec, so that the
    mean of the activations does not decide which latents are active."""
    b_enc.copy_(-(W_enc.double() @ b_dec.double()))


@torch.no_grad()
def geometric_median(rows: Tensor, start: Tensor, *, most_steps: int = 100, tolerance: float = 1e-6) -> Tensor:
    """argmin_m Σ_n ‖x_n − m‖ by Weiszfeld's iteration, m ← Σ w_n x_n / Σ w_n with w_n = 1 / ‖x_n − m‖, from `start`,
    until a step is shorter than `tolerance` times the rows' mean distance. Sums in float64.

    Against the mean it is robust: a few tokens of huge norm (a text's first token, say) do not move it.
    Distances are kept above 1e-12 of their mean, so that a row that m meets weighs finitely. Source: Weiszfeld, 1937.
    """
    x, m = rows.double(), start.double()
    for _ in range(most_steps):
        distance = (x - m).norm(dim=1)
        spread = distance.mean()
        if spread == 0:
            break
        weight = distance.clamp_min(1e-12 * spread).reciprocal()
        new = (x * weight[:, None]).sum(0) / weight.sum()
        done = (new - m).norm() <= tolerance * spread
        m = new
        if done:
            break
    return m.float()
