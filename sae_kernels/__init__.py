"""Fast sparse autoencoders and transcoders: kernels, architectures, and the system around them."""

from __future__ import annotations

from .architectures import CoderConfig, Loss, SparseCoder, create
from .codes import SparseCodes
from .formats import load, save
from .hookspecs import hookimpl
from .ops import BatchTopK, Threshold, TopK, decode, encode, explain, prefix_decode, topk
from .patches import PatchHandle, patch
from .settings import use

__version__ = "0.1.0"

__all__ = [
    "BatchTopK",
    "CoderConfig",
    "Loss",
    "PatchHandle",
    "SparseCoder",
    "SparseCodes",
    "Threshold",
    "TopK",
    "create",
    "decode",
    "encode",
    "explain",
    "hookimpl",
    "load",
    "patch",
    "prefix_decode",
    "save",
    "topk",
    "use",
]
