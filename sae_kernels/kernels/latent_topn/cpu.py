"""`latent_topn` in C++: slots sorted by latent, each put into its latent's sorted list. csrc/latent_topn."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import ArgumentError
from .. import _cpu


def why_not(
    best_values: Tensor,
    best_tokens: Tensor,
    values: Tensor,
    indices: Tensor,
    offsets: Tensor | None,
    first_token: int,
) -> str | None:
    """None, or why the C++ kernel declines."""
    if not (best_values.is_contiguous() and best_tokens.is_contiguous()):
        return "best_values and best_tokens are written in place (need to be contiguous)"
    return _cpu.why_not(values) or _cpu.why_not(best_values)


def run(
    best_values: Tensor,
    best_tokens: Tensor,
    values: Tensor,
    indices: Tensor,
    offsets: Tensor | None,
    first_token: int,
) -> None:
    """See `sae_kernels.kernels.latent_topn`."""
    codes = _cpu.Codes(values, indices, offsets, values.dtype)
    if not 0 <= first_token < (1 << 63) - codes.n:
        raise ArgumentError(f"first_token = {first_token}, expected a token's number: 0 or more, within int64")
    d_sae, best = best_values.shape
    _cpu.writable(best_values, (d_sae, best), torch.float32, "best_values")
    _cpu.writable(best_tokens, (d_sae, best), torch.int64, "best_tokens")
    lists = (best_values.data_ptr(), best_tokens.data_ptr(), d_sae, best)
    _cpu.call("latent_topn", _cpu.dtype_code(values), *codes.args, *lists, first_token, codes=codes, limit=d_sae)
