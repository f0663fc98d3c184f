"""`transpose`: a stable counting sort of the slots by latent."""

from __future__ import annotations

import pytest
import torch
from support import dense

from bench import cases

ops = torch.ops.sae_kernels


@pytest.mark.parametrize("ragged", [False, True], ids=["fixed", "ragged"])
@pytest.mark.parametrize("draw", cases.DRAWS)
@pytest.mark.parametrize("size", [cases.ORDINARY, *cases.SMALL, *cases.EMPTY], ids=str)
def test_slots_by_latent(backend: str, size: cases.Size, draw: str, ragged: bool) -> None:
    _, indices, offsets = cases.codes(size, draw=draw, ragged=ragged).flat()
    latent_offsets, order, rows = ops.transpose(indices, offsets, size.d_sae, backend=backend)
    flat = indices.flatten().tolist()
    expected = sorted(range(len(flat)), key=lambda slot: (flat[slot], slot))
    ends = [sum(latent < end for latent in flat) for end in range(size.d_sae + 1)]
    assert order.tolist() == expected
    assert order.dtype == latent_offsets.dtype == torch.int64
    assert rows.dtype == torch.int32
    assert rows.tolist() == dense.row_of_slots(indices, offsets)[order].tolist()
    assert latent_offsets.tolist() == ends


@pytest.mark.big
def test_a_large_dictionary_and_many_slots(backend: str) -> None:
    indices = cases.codes(cases.Size(5000, 1, 200_000, 20), draw="zipf").indices
    latent_offsets, order, rows = ops.transpose(indices, None, 200_000, backend=backend)
    latents = indices.flatten()[order]
    assert (latents.diff() >= 0).all()
    assert ((latents.diff() > 0) | (order.diff() > 0)).all(), "not stable"
    assert torch.equal(torch.bincount(indices.flatten(), minlength=200_000), latent_offsets.diff())
    assert torch.equal(rows.long(), order // 20)
