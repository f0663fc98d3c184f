"""When screening pays."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from ... import settings
from ...errors import ConfigError
from .. import _cpu
from .chunks import in_pieces

MODES = ("auto", "on", "off", "int8")
LEAST_D, LEAST_M, LEAST_N = 64, 1024, 32  # below, products are too small a part of the work
LEAST_N_IN_PIECES = 1024  # where the rows of W have to be copied first
LATENTS_A_CHOICE = 24  # with fewer latents for each one chosen, too many are computed twice


@functools.cache
def screening_pays() -> bool:
    """PyTorch multiplies bfloat16 on this machine much faster than float32: with AMX, or AMD's AVX512_BF16."""
    if _cpu.isa() not in ("avx512", "amx") or not _cpu.ask("fast_bf16"):
        return False
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def mode() -> str:
    """SAE_KERNELS_SCREENING: auto, on, off, or int8 (which is auto to all that 8 bits do not serve)."""
    chosen = settings.read("SAE_KERNELS_SCREENING") or "auto"
    if chosen not in MODES:
        raise ConfigError(f"SAE_KERNELS_SCREENING={chosen}, expected one of {', '.join(MODES)}")
    return chosen


def screens(x: Tensor, W: Tensor, ks: Sequence[int]) -> bool:
    """Whether to screen this problem. `on` takes what screening can do at all."""
    chosen, (n, d), m = mode(), x.shape, W.shape[0]
    if chosen == "off" or d == 0 or n == 0 or m == 0 or W.is_neg():
        return False
    if chosen == "on":
        return True
    least_n = LEAST_N_IN_PIECES if in_pieces(W) else LEAST_N
    if d < LEAST_D or m < LEAST_M or n < least_n or LATENTS_A_CHOICE * sum(ks) > m:
        return False
    return screening_pays() and bool(torch.backends.mkldnn.enabled)
