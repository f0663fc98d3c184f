"""Screening on the CPU: products of few bits decide which pre-acts are worth computing exactly.

Where products of bfloat16 numbers or of integers run much faster than float32 ones, all pre-acts are computed from
inputs rounded to these, with a bound on how far off each may be (csrc/screen/bound.inl.h, integer_topk.inl.h). Only
those that could be chosen are computed in float32. The choice is made among exact values: what the bound is good for
is speed.

Files: `policy` (when), `rounded` (rows in bfloat16), `integers` (in 8 or 16 bits), `kept` (copies of weights that
stay), `products` and `chunks` (the scores).
"""

from .chunks import BFLOAT16
from .integers import INT8, INT16
from .kept import forget
from .policy import IN_WORDS, MODES, screens

__all__ = ["BFLOAT16", "INT8", "INT16", "IN_WORDS", "MODES", "forget", "screens"]
