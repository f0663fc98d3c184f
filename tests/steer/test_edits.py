from __future__ import annotations

import dataclasses

import pytest
import torch

from sae_kernels.errors import ArgumentError, IndexRangeError
from sae_kernels.steer import Ablate, Add, Clamp, Scale
from sae_kernels.steer.edits import check_edits


def test_what_each_does() -> None:
    acts = torch.tensor([0.0, 2.0])
    assert Add(3, 1.5).apply(acts).tolist() == [1.5, 3.5]
    assert Clamp(3, 7.0).apply(acts).tolist() == [7, 7]
    assert Scale(3, -2).apply(acts).tolist() == [0, -4]
    assert Ablate(3).apply(acts).tolist() == [0, 0]
    assert Clamp.times_max(3, torch.tensor(1.5)) == Clamp(3, 15.0)
    assert Clamp.times_max(3, 1.5, times=2) == Clamp(3, 3.0)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), "3", None, True])
@pytest.mark.parametrize("edit", [Add, Clamp, Scale])
def test_numbers_that_make_no_sense(edit: type, number: object) -> None:
    with pytest.raises(ArgumentError, match="expected a finite number"):
        edit(0, number)


@pytest.mark.parametrize("latent", [1.0, "1", True, None])
def test_latents_that_are_no_integers(latent: object) -> None:
    with pytest.raises(ArgumentError, match="expected an integer"):
        Ablate(latent)


@pytest.mark.parametrize("latent", [-1, 8, 10**10])
def test_latents_that_are_not_there(latent: int) -> None:
    with pytest.raises(IndexRangeError, match=f"latent {latent}, expected 0 <= latent < d_sae = 8"):
        check_edits([Ablate(0), Ablate(latent)], 8)


def test_one_or_many() -> None:
    assert check_edits(Ablate(1), 8) == [Ablate(1)]
    assert check_edits((), 8) == []
    with pytest.raises(ArgumentError, match="expected Add"):
        check_edits([3], 8)


def test_edits_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Add(1, 2.0).strength = 3.0
