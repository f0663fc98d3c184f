"""The suite's own net: does an unwritten element show?"""

from __future__ import annotations

import torch


def test_fresh_floats_are_nan_and_fresh_integers_the_largest(poison: None) -> None:
    assert torch.empty(9).isnan().all()
    assert torch.empty(9, dtype=torch.bfloat16).isnan().all()
    assert torch.ones(2).new_empty(9).isnan().all()
    assert (torch.empty(9, dtype=torch.int32) == torch.iinfo(torch.int32).max).all()
