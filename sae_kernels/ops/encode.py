"""`encode`: activations to sparse codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor

from ..codes import SparseCodes
from ..errors import ArgumentError, DeviceError, ShapeError, describe
from ..kernels import OPS
from . import _checks
from ._screening import backend_for
from .selections import BatchTopK, Selection, Threshold, TopK


@overload
def encode(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor | None,
    selection: Selection | int,
    *,
    backend: str = "",
    screening: str = "",
) -> SparseCodes: ...
@overload
def encode(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor | None,
    selection: tuple[Selection | int, ...],
    *,
    backend: str = "",
    screening: str = "",
) -> tuple[SparseCodes, ...]: ...


def encode(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor | None,
    selection: Selection | int | tuple[Selection | int, ...],
    *,
    backend: str = "",
    screening: str = "",
) -> SparseCodes | tuple[SparseCodes, ...]:
    """Select(x W_encᵀ + b_enc), without ever holding the (tokens, d_sae) pre-acts.

    Shapes:
        x (…, d_in), W_enc (d_sae, d_in) (any strides: a transposed one is `.mT`), b_enc (d_sae,) or None; one dtype
        among float32, bfloat16, float16 (float64 runs on the reference). Pre-acts accumulate in float32 and are
        selected before they are rounded to that dtype. → codes with values in that dtype and x's leading shape.
        `selection`: `TopK`, `Threshold`, `BatchTopK`; an int k is `TopK(k)`. A tuple gives a tuple of codes; the
        `TopK`s in it share one pass over x W_encᵀ.

    Screening:
        how pre-acts may be found that need not be computed exactly. By default only ways that never change the result.
        `screening="int8"`, by name alone and for `TopK` on a CPU with AVX-512 VNNI: 8-bit products with random
        dither. For every input that was chosen without knowledge of the dither, a token's latents are exactly the k
        largest with probability at least 1 - 1e-9; values are exact for the latents chosen. A fixed seed: the same
        input gives the same codes every time. `docs/tuning.md` says more.

    Gradients:
        of `values` to x, W_enc and b_enc; none through empty slots (value 0). Inside `torch.autocast` everything is
        cast to its dtype first, as in `F.linear`.

    Raises:
        ShapeError, DtypeError, DeviceError, ArgumentError: naming what was found and expected.
        ArgumentError: an unknown `screening`, or one that does not serve the selection or the backend in force.
        BackendError: `backend` (or the one in force through `use` or SAE_KERNELS_BACKEND), or `screening`, declined.

    Source: TopK arXiv 2406.04093, BatchTopK 2412.06410, JumpReLU 2407.14435.
    """
    x, W_enc, b_enc = _checks.autocast(x, W_enc, b_enc)  # pyright: ignore[reportAssignmentType]
    _checks.linear("encode", x, W_enc, b_enc)
    single = not isinstance(selection, tuple)
    wanted = normal(selection, W_enc)
    if screening != "":
        backend = backend_for(screening, backend, wanted)
    lead = tuple(x.shape[:-1])
    flat = _checks.matrix(x)
    out: list[SparseCodes | None] = [None] * len(wanted)
    _top_k(flat, W_enc, b_enc, wanted, lead, backend, out)
    for i, each in enumerate(wanted):
        if not isinstance(each, TopK):
            op, args = ragged_call(flat, W_enc, b_enc, each)
            values, indices, offsets = OPS[op](*args, backend=backend)
            out[i] = SparseCodes(values, indices, W_enc.shape[0], offsets, lead)
    codes = tuple(each for each in out if each is not None)
    return codes[0] if single else codes


def normal(selection: Any, W_enc: Tensor) -> tuple[Selection, ...]:
    """A tuple of selections that fit d_sae and the device."""
    given: Sequence[Any] = selection if isinstance(selection, tuple) else (selection,)
    if not given:
        raise ArgumentError("encode: an empty tuple of selections, expected at least one")
    d_sae = W_enc.shape[0]
    normal: list[Selection] = []
    for each in given:
        if not isinstance(each, (TopK, Threshold, BatchTopK)):
            if not isinstance(each, (int, float)):
                kind = type(each).__name__
                raise ArgumentError(f"encode: selection is a {kind}, expected TopK, Threshold, BatchTopK or an int k")
            each = TopK(each)  # pyright: ignore[reportArgumentType]  refuses what is no positive integer
        if isinstance(each, (TopK, BatchTopK)):
            _checks.k_fits("encode", each.k, d_sae)
        extra = each.among if isinstance(each, TopK) else each.theta if isinstance(each, Threshold) else None
        if isinstance(extra, Tensor):
            name = "among" if isinstance(each, TopK) else "theta"
            if extra.device != W_enc.device:
                raise DeviceError(f"encode: {name} on {extra.device}, W_enc on {W_enc.device}")
            if (
                extra.dim() > 1
                or (extra.dim() == 1 and extra.shape[0] != d_sae)
                or (name == "among" and extra.dim() == 0)
            ):
                raise ShapeError(f"encode: {name} is {describe(extra)}, expected (d_sae,) = ({d_sae},)")
        normal.append(each)
    return tuple(normal)


_EVERYONE = torch.empty(0, dtype=torch.bool)  # no mask, on the CPU: making one takes longer than a small product


def top_k_call(x: Tensor, W_enc: Tensor, b_enc: Tensor | None, wanted: Sequence[TopK]) -> tuple[str, tuple[Any, ...]]:
    """The op and arguments that serve several `TopK`s in one pass."""
    plain = type(x) is Tensor and x.is_cpu and not torch.compiler.is_compiling()
    everyone = _EVERYONE if plain else x.new_empty(0, dtype=torch.bool)
    among = [everyone if each.among is None else each.among for each in wanted]
    return "linear_topk", (x, W_enc, b_enc, [each.k for each in wanted], [each.relu for each in wanted], among)


def ragged_call(
    x: Tensor, W_enc: Tensor, b_enc: Tensor | None, wanted: Threshold | BatchTopK
) -> tuple[str, tuple[Any, ...]]:
    """The op and arguments of a ragged selection."""
    if isinstance(wanted, BatchTopK):
        return "linear_batch_topk", (x, W_enc, b_enc, wanted.k * x.shape[0], wanted.relu)
    theta = wanted.theta
    if isinstance(theta, Tensor):
        theta = theta.detach().to(torch.float32)
    else:
        theta = torch.full((), float(theta), dtype=torch.float32, device=x.device)  # `tensor` makes the host wait
    return "linear_threshold", (x, W_enc, b_enc, theta)


def _top_k(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor | None,
    wanted: Sequence[Selection],
    lead: tuple[int, ...],
    backend: str,
    out: list[SparseCodes | None],
) -> None:
    """Fill in the `TopK`s' codes."""
    mine = [(i, each) for i, each in enumerate(wanted) if isinstance(each, TopK)]
    if not mine:
        return
    op, args = top_k_call(x, W_enc, b_enc, [each for _, each in mine])
    flat = OPS[op](*args, backend=backend)
    for j, (i, each) in enumerate(mine):
        values, indices = flat[2 * j : 2 * j + 2]
        if len(lead) != 1:
            values, indices = values.reshape(*lead, each.k), indices.reshape(*lead, each.k)
        out[i] = SparseCodes(values, indices, W_enc.shape[0])
