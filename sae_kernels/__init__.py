"""Fast sparse autoencoders and transcoders: kernels, architectures, and the system around them."""

from __future__ import annotations

from .codes import SparseCodes
from .hookspecs import hookimpl
from .ops import BatchTopK, Threshold, TopK, decode, encode, explain, prefix_decode, topk
from .settings import use

__all__ = [
    "BatchTopK", "SparseCodes", "Threshold", "TopK", "decode", "encode", "explain", "hookimpl", "prefix_decode", "topk", "use",
]
