"""When screening pays, and by which products."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from ... import settings
from ...errors import ConfigError
from .. import _cpu
from . import integers
from .chunks import BFLOAT16, in_pieces
from .integers import INT8, INT16

MODES = ("auto", "on", "off", "int8")
LEAST_D, LEAST_M, LEAST_N = 64, 1024, 32  # below, products are too small a part of the work
LEAST_N_IN_PIECES = 1024  # where the rows of W have to be copied first
LATENTS_A_CHOICE = 24  # with fewer latents for each one chosen, too many are computed twice
# Integers: rounding a weight takes as long as they save on so many tokens.
LEAST_N_INTEGERS = {INT8: 256, INT16: 96}
# The bounds of 8 bits are wide, and wider with √d: with so many coordinates, and so many latents for each one chosen,
# they still beat float32; and bfloat16, where it is fast.
MOST_D_INT8, MOST_D_BESIDE_BFLOAT16 = 4096, 3072
LATENTS_A_CHOICE_INT8, LATENTS_A_CHOICE_BESIDE_BFLOAT16 = 48, 128
# Where rows of W have to be copied first, a choice of k cannot wait until its bounds are narrow: it computes more.
MOST_D_IN_PIECES, MOST_D_IN_PIECES_BESIDE_BFLOAT16 = 1280, 768


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


def screens(x: Tensor, W: Tensor, ks: Sequence[int]) -> str:
    """The products to screen this problem with: BFLOAT16, INT8, INT16, or "" for not at all. `on` takes what bfloat16
    can do at all."""
    chosen, (n, d), m = mode(), x.shape, W.shape[0]
    if chosen == "off" or d == 0 or n == 0 or m == 0 or W.is_neg():
        return ""
    if chosen == "on":
        return BFLOAT16
    if not _large_enough(x, W, ks):
        return ""
    products = integers_pay(W, ks)
    if products and n >= LEAST_N_INTEGERS[products]:
        return products
    return BFLOAT16 if bfloat16_pays() else ""


IN_WORDS = {
    BFLOAT16: "exact, screened by bfloat16 products",
    INT8: "exact, screened by 8-bit products",
    INT16: "exact, screened by 16-bit products",
    "": "all of it in float32",
}


def screens_with_copy(x: Tensor, W: Tensor, ks: Sequence[int]) -> str:
    """The products whose copy of the weights would serve these tokens, too few to make one for; "": none."""
    if mode() in ("off", "on") or W.is_neg() or in_pieces(W) or not _large_enough(x, W, ks):
        return ""
    products = integers_pay(W, ks)
    return products if products and 0 < x.shape[0] < LEAST_N_INTEGERS[products] else ""


def _large_enough(x: Tensor, W: Tensor, ks: Sequence[int]) -> bool:
    (n, d), m = x.shape, W.shape[0]
    least_n = LEAST_N_IN_PIECES if in_pieces(W) else LEAST_N
    return d >= LEAST_D and m >= LEAST_M and n >= least_n and LATENTS_A_CHOICE * sum(ks) <= m


def bfloat16_pays() -> bool:
    """`screening_pays`, and PyTorch may do it."""
    return screening_pays() and bool(torch.backends.mkldnn.enabled)


def integers_pay(W: Tensor, ks: Sequence[int]) -> str:
    """Those that do, or "". AMX is left to bfloat16: its 8-bit tiles have not been timed."""
    if _cpu.isa() == "avx2":
        return INT16 if W.shape[1] <= integers.MOST_D else ""
    return INT8 if _cpu.isa() == "avx512" and integers.vnni() and _8_bits_pay(W, ks) else ""


def _8_bits_pay(W: Tensor, ks: Sequence[int]) -> bool:
    most_d, in_pieces_d, a_choice = MOST_D_INT8, MOST_D_IN_PIECES, LATENTS_A_CHOICE_INT8
    if bfloat16_pays():
        most_d, in_pieces_d = MOST_D_BESIDE_BFLOAT16, MOST_D_IN_PIECES_BESIDE_BFLOAT16
        a_choice = LATENTS_A_CHOICE_BESIDE_BFLOAT16
    if ks and in_pieces(W):
        most_d = in_pieces_d
    m, d = W.shape
    return d <= most_d and a_choice * sum(ks) <= m
