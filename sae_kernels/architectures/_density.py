"""On how many tokens each latent is active at the start, where a bias alone decides it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import ConfigError, ShapeError
from ._base import CoderConfig
from ._sums import wide

INITIAL = 0.05  # less is no better, and each latent should meet some tokens of a batch
SAMPLE = 1024  # tokens that tell
SAME = 1e-6  # of ‖w‖ ‖x‖: no order of summation is so far off
NUMBERS = 4 << 20  # of pre-acts that lie in memory at once


@dataclass(frozen=True)
class DensityConfig(CoderConfig):
    """`initial_density`: the share of tokens on which each latent starts out active. Its bias is set so, of the first
    batch."""

    initial_density: float = field(default=INITIAL, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share(self.initial_density)


def require_share(density: object) -> None:
    """ConfigError unless 0 < `initial_density` < 1."""
    if isinstance(density, bool) or not isinstance(density, (int, float)) or not 0 < density < 1:
        raise ConfigError(f"initial_density = {density!r}, expected a number between 0 and 1")


@torch.no_grad()
def bias_of_density(x: Tensor, W_enc: Tensor, density: float, minus: Tensor | None = None) -> Tensor:
    """(d_sae,), float32 at least: b with which W_enc (x − minus) + b > 0 on a share `density` of the rows x (N, d_in),
    for each latent, as `SAMPLE` of them say, drawn the same every time; on one of these at least. Rows that a latent
    cannot tell apart are all active if one has to be.

    Biases of 0 would have half of all latents active on every token, at sums of which most is noise to be unlearnt.
    Source: Anthropic, Circuits Updates January 2025, "Dictionary Learning Optimization Techniques", which starts b_enc
    so that each latent fires equally often.

    Raises:
        ShapeError: x has no rows.
    """
    if not len(x):
        raise ShapeError(f"x is {tuple(x.shape)}, expected at least one row to start from")
    drawn = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:SAMPLE]
    x = x[drawn.to(x.device)].to(wide(W_enc.dtype))
    if minus is not None:
        x = x - minus
    active = min(max(round(density * len(x)), 1), max(len(x) - 1, 1))
    longest, found = x.norm(dim=1).max(), []
    for rows in W_enc.split(max(1, NUMBERS // len(x))):
        greatest = (rows.to(x.dtype) @ x.mT).topk(min(active + 1, len(x))).values
        last, other = greatest[:, -2:][:, 0], greatest[:, -1]  # that is to be active, that is not
        near = SAME * longest * rows.to(x.dtype).norm(dim=1)
        found.append(torch.where(last - other > near, -(last + other) / 2, near - other))
    return torch.cat(found)
