"""The ops: one folder each, the definition in its `__init__`, one file a backend beside it.

Importing this package registers `torch.ops.sae_kernels.*`.
"""

from __future__ import annotations

from . import (
    adam_rows,
    latent_topn,
    linear_batch_topk,
    linear_threshold,
    linear_topk,
    prefix_decode,
    sddmm,
    spmm,
    spmm_backward,
    spmm_t,
    topk,
    transpose,
)

OPS = {
    module.OP.name: module.OP
    for module in (
        topk,
        linear_topk,
        linear_threshold,
        linear_batch_topk,
        spmm,
        spmm_t,
        spmm_backward,
        sddmm,
        transpose,
        prefix_decode,
        adam_rows,
        latent_topn,
    )
}

__all__ = ["OPS"]
