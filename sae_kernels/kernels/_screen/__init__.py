"""Screening on the CPU: bfloat16 products decide which pre-acts are worth computing exactly.

Where bfloat16 products run much faster than float32 ones, all pre-acts are computed from inputs rounded to
bfloat16, with a bound on how far off each may be (csrc/screen/bound.inl.h). Only those that could be chosen are
computed in float32. The choice is made among exact values: what the bound is good for is speed.

Files: `policy` (when), `rounded` (rows in bfloat16), `kept` (copies of weights that stay), `chunks` (the scores).
"""

from .kept import forget
from .policy import MODES, screens

__all__ = ["MODES", "forget", "screens"]
