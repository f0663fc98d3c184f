"""`SparseCodes`: what fits together, and what it can tell about itself."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import dense

from bench import cases
from sae_kernels import SparseCodes
from sae_kernels.errors import DeviceError, DtypeError, IndexRangeError, ShapeError

values, indices = torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.int32)
flat, where, ends = torch.ones(4), torch.zeros(4, dtype=torch.int32), torch.tensor([0, 3, 4])

REFUSED = {
    "shapes differ": (
        (values, indices[:, :2], 5),
        ShapeError,
        "values (2, 3) float32 cpu and indices (2, 2) int32 cpu must have one shape",
    ),
    "int64 indices": (
        (values, indices.long(), 5),
        DtypeError,
        "indices are (2, 3) int64 cpu, expected int32 (use indices.int())",
    ),
    "float indices": ((values, values, 5), DtypeError, "indices are (2, 3) float32 cpu, expected int32"),
    "integer values": ((indices, indices, 5), DtypeError, "values are (2, 3) int32 cpu, expected a floating dtype"),
    "two devices": ((values, indices.to("meta"), 5), DeviceError, "values on cpu, indices on meta"),
    "offsets elsewhere": ((flat, where, 5, ends.to("meta")), DeviceError, "values on cpu, offsets on meta"),
    "no latents": ((values, indices, 0), ShapeError, "d_sae is 0, expected a positive integer"),
    "d_sae True": ((values, indices, True), ShapeError, "d_sae is True, expected a positive integer"),
    "0-d": ((values[0, 0], indices[0, 0], 5), ShapeError, "fixed-width values are 0-d, expected (…, k)"),
    "ragged 2-d": ((values, indices, 5, ends), ShapeError, "ragged values are (2, 3) float32 cpu, expected (nnz,)"),
    "int32 offsets": ((flat, where, 5, ends.int()), DtypeError, "offsets are (3,) int32 cpu, expected int64"),
    "no offsets": ((flat, where, 5, ends[:0]), ShapeError, "offsets are (0,) int64 cpu, expected (N+1,)"),
    "offsets 2-d": ((flat, where, 5, ends[None]), ShapeError, "offsets are (1, 3) int64 cpu, expected (N+1,)"),
    "lead of other rows": ((flat, where, 5, ends, (3,)), ShapeError, "lead (3,) has 3 rows, offsets have 2"),
    "lead of fixed width": ((values, indices, 5, None, (2,)), ShapeError, "`lead` belongs to ragged codes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_parts_that_do_not_fit_are_refused(name: str) -> None:
    parts, error, words = REFUSED[name]
    with pytest.raises(error, match=re.escape(words)):
        SparseCodes(*parts)


@pytest.mark.parametrize("ragged", [False, True], ids=["fixed", "ragged"])
def test_dense_l0_fired_and_rows(ragged: bool) -> None:
    codes = cases.codes(cases.ORDINARY, torch.float64, "zipf", ragged=ragged)
    assert codes.is_ragged == ragged
    assert codes.n_rows == 37
    truth = dense.table(*codes.flat(), codes.d_sae)
    torch.testing.assert_close(codes.dense(), truth)
    assert codes.rows().tolist() == dense.row_of_slots(codes.indices, codes.offsets).tolist()
    active = codes.values.flatten() != 0
    counts = torch.bincount(codes.rows()[active], minlength=37)
    assert codes.l0().tolist() == counts.tolist()
    assert codes.fired().nonzero().flatten().tolist() == sorted(set(codes.indices.flatten()[active].tolist()))


def test_leading_shapes() -> None:
    fixed = SparseCodes(torch.ones(2, 3, 4), torch.zeros(2, 3, 4, dtype=torch.int32), 5)
    assert (fixed.lead_shape, fixed.n_rows) == ((2, 3), 6)
    assert fixed.dense().shape == (2, 3, 5)
    assert [tuple(t.shape) for t in fixed.flat()[:2]] == [(6, 4)] * 2
    ragged = SparseCodes(flat, where, 5, ends, (1, 2))
    assert ragged.lead_shape == (1, 2)
    assert ragged.l0().tolist() == [[3, 1]]
    assert SparseCodes(flat, where, 5, ends).lead_shape == (2,)
    scalar_row = SparseCodes(flat, where, 5, torch.tensor([0, 4]), ())
    assert scalar_row.l0().shape == ()


def test_dense_refuses_indices_outside() -> None:
    with pytest.raises(IndexRangeError, match=re.escape("indices span [0, 7], expected [0, 5)")):
        SparseCodes(flat, torch.tensor([0, 7, 1, 2], dtype=torch.int32), 5, ends).dense()


def test_to_detach_and_with_values() -> None:
    codes = SparseCodes(flat.clone().requires_grad_(), where, 5, ends, (2,))
    half = codes.to(dtype=torch.float16)
    assert (half.values.dtype, half.indices.dtype, half.lead) == (torch.float16, torch.int32, (2,))
    assert not codes.detach().values.requires_grad
    assert codes.to("meta").offsets is not None
    assert codes.with_values(flat * 2).values.tolist() == [2] * 4
    with pytest.raises(ShapeError):
        codes.with_values(flat[:2])


def test_dense_is_differentiable() -> None:
    leaf = torch.tensor([[1.0, 2.0]], requires_grad=True)
    codes = SparseCodes(leaf, torch.tensor([[2, 0]], dtype=torch.int32), 3)
    (codes.dense() * torch.tensor([1.0, 10.0, 100.0])).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [[100, 1]]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.sampled_from([0.0, -0.0, 1.5, -2.0]), min_size=4, max_size=4), max_size=5))
def test_from_dense_and_back(rows: list[list[float]]) -> None:
    acts = torch.tensor(rows).reshape(len(rows), 4)
    codes = SparseCodes.from_dense(acts)
    assert torch.equal(codes.dense(), acts)
    assert torch.equal(codes.l0(), (acts != 0).sum(1))
    assert (codes.values != 0).all()


def test_from_dense_keeps_leading_shapes() -> None:
    acts = cases.scores("few_positive", 6, 9).relu().reshape(2, 3, 9)
    assert torch.equal(SparseCodes.from_dense(acts).dense(), acts)
    assert torch.equal(SparseCodes.from_dense(acts[0, 0]).dense(), acts[0, 0])
    with pytest.raises(ShapeError, match=re.escape("acts are () float32 cpu, expected (…, d_sae)")):
        SparseCodes.from_dense(torch.ones(()))
