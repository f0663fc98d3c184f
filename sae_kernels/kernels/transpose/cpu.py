"""`transpose` in C++: a counting sort, parallel over rows. csrc/transpose."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import ShapeError
from .. import _cpu


def why_not(indices: Tensor, offsets: Tensor | None, d_sae: int) -> str | None:
    """None, or why the C++ kernel declines."""
    if indices.device.type != "cpu":
        return f"device is {indices.device.type} (needs cpu)"
    return _cpu.why_not()


def run(indices: Tensor, offsets: Tensor | None, d_sae: int) -> tuple[Tensor, Tensor, Tensor]:
    """See `sae_kernels.kernels.transpose`."""
    codes = _cpu.Codes(None, indices, offsets, torch.float32)
    if not 0 <= d_sae <= 1 << 31:
        raise ShapeError(f"d_sae = {d_sae}, expected 0 <= d_sae <= 2^31 (indices are int32)")
    latent_offsets = _cpu.empty(d_sae + 1, dtype=torch.int64)
    order = _cpu.empty(codes.nnz, dtype=torch.int64)
    rows = _cpu.empty(codes.nnz, dtype=torch.int32)
    outs = (latent_offsets.data_ptr(), order.data_ptr(), rows.data_ptr())
    _cpu.call("transpose", *codes.args, d_sae, *outs, codes=codes, limit=d_sae)
    return latent_offsets, order, rows
