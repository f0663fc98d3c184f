"""`decode`: sparse codes to reconstructions; `prefix_decode` for nested prefixes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from ..codes import SparseCodes
from ..errors import ArgumentError, ShapeError, describe
from ..kernels import OPS
from . import _checks


def check_codes(op: str, codes: SparseCodes) -> None:
    """`codes` are SparseCodes."""
    if not isinstance(codes, SparseCodes):
        raise ArgumentError(f"{op}: codes are a {type(codes).__name__}, expected SparseCodes")


def check(
    op: str, codes: SparseCodes, W_dec: Tensor, b_dec: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, torch.dtype | None]:
    """The boundary of a decode: (values, W_dec, b_dec, their `kind`), cast where autocast is on."""
    check_codes(op, codes)
    values, W_dec, b_dec = _checks.autocast(codes.values, W_dec, b_dec)  # pyright: ignore[reportAssignmentType]
    assert values is not None
    if _checks.usual(values, W_dec) if b_dec is None else _checks.usual(values, W_dec, b_dec):
        sizes = W_dec.shape
        if len(sizes) == 2 and sizes[0] == codes.d_sae and (b_dec is None or b_dec.shape == sizes[1:]):
            return values, W_dec, b_dec, values.dtype
    _checks.floating(op, values=values, W_dec=W_dec, b_dec=b_dec)
    _checks.rank(op, "W_dec", W_dec, 2, "(d_sae, d_out)")
    d_sae, d_out = W_dec.shape
    if d_sae != codes.d_sae:
        hint = " (W_dec looks transposed: pass W_dec.mT)" if d_out == codes.d_sae else ""
        raise ShapeError(f"{op}: W_dec is {describe(W_dec)}, the codes have d_sae = {codes.d_sae}{hint}")
    if b_dec is not None and (b_dec.dim() != 1 or b_dec.shape[0] != d_out):
        raise ShapeError(f"{op}: b_dec must be (d_out,) = ({d_out},)\n  {_checks.show(W_dec=W_dec, b_dec=b_dec)}")
    return values, W_dec, b_dec, None


def decode(codes: SparseCodes, W_dec: Tensor, b_dec: Tensor | None = None, *, backend: str = "") -> Tensor:
    """y_n = Σ_j values[n, j] · W_dec[indices[n, j]] + b_dec.

    Shapes:
        codes over d_sae latents, W_dec (d_sae, d_out), b_dec (d_out,) or None; one dtype; sums accumulate in float32.
        → (…, d_out) in that dtype, with the codes' leading shape.

    Gradients:
        to `codes.values` (none through empty slots), W_dec (d_sae, d_out) and b_dec; each again differentiable.

    Raises:
        ShapeError, DtypeError, DeviceError: parts that do not fit together.
        IndexRangeError: an index outside [0, d_sae), or offsets that are no CSR; found before memory is read.
        BackendError: `backend` (or the one in force) declined.
    """
    values, W_dec, b_dec, kind = check("decode", codes, W_dec, b_dec)
    flat_values, indices, offsets = codes.with_values(values).flat()
    y = OPS["spmm"](flat_values, indices, offsets, W_dec, backend=backend, kind=kind)
    if b_dec is not None:
        y = y + b_dec
    return y if codes.values.dim() == 2 else y.reshape(*codes.lead_shape, W_dec.shape[1])


def prefix_decode(
    codes: SparseCodes, W_dec: Tensor, b_dec: Tensor | None, prefixes: Sequence[int], *, backend: str = ""
) -> Tensor:
    """y_p,n = Σ_{j: indices[n, j] < prefixes[p]} values[n, j] · W_dec[indices[n, j]] + b_dec, all prefixes in one pass.

    Shapes:
        as `decode`; `prefixes` rise strictly, 1 ≤ prefix ≤ d_sae. → (P, …, d_out).

    Gradients:
        as `decode`.

    Raises:
        ArgumentError: prefixes that don't rise or leave the dictionary. Otherwise as `decode`.

    Source: Matryoshka SAEs, arXiv 2503.17547.
    """
    check_codes("prefix_decode", codes)
    ends = [_checks.positive_integer("prefix", prefix) for prefix in prefixes]
    if not ends or ends[-1] > codes.d_sae or any(a >= b for a, b in itertools.pairwise(ends)):
        raise ArgumentError(
            f"prefix_decode: prefixes = {ends}, expected strictly rising within 1 … d_sae = {codes.d_sae}"
        )
    values, W_dec, b_dec, kind = check("prefix_decode", codes, W_dec, b_dec)
    flat_values, indices, offsets = codes.with_values(values).flat()
    y = OPS["prefix_decode"](flat_values, indices, offsets, W_dec, ends, backend=backend, kind=kind)
    if b_dec is not None:
        y = y + b_dec
    return y.reshape(len(ends), *codes.lead_shape, W_dec.shape[1])
