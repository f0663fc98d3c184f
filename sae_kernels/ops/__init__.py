"""What users call: encode, decode, topk and the selections. Backend-blind; checks once, at the boundary."""

from __future__ import annotations

from .decode import decode, prefix_decode
from .encode import encode
from .explain import explain
from .selections import BatchTopK, Selection, Threshold, TopK
from .topk import topk

__all__ = ["BatchTopK", "Selection", "Threshold", "TopK", "decode", "encode", "explain", "prefix_decode", "topk"]
