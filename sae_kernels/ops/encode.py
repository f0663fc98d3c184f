"""`encode`: activations to sparse codes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    if torch._C._is_any_autocast_enabled():
        x, W_enc, b_enc = _checks.autocast(x, W_enc, b_enc)  # pyright: ignore[reportAssignmentType]
    kind = _checks.linear("encode", x, W_enc, b_enc)
    if kind and not screening:
        codes = _usual(x, W_enc, b_enc, selection, backend, kind)
        if codes is not None:
            return codes
    wanted = normal(selection, W_enc)
    if screening != "":
        backend = backend_for(screening, backend, wanted)
    lead, flat = x.shape[:-1], _checks.matrix(x)
    if not isinstance(selection, tuple):
        return _alone(flat, W_enc, b_enc, wanted[0], lead, backend, kind)
    together = [each for each in wanted if isinstance(each, TopK)]
    found: Iterator[Tensor] = iter(())
    if together:
        op, args = top_k_call(flat, W_enc, b_enc, together)
        found = iter(OPS[op](*args, backend=backend, kind=kind))
    codes = [
        _fixed(next(found), next(found), W_enc.shape[0], lead)
        if isinstance(each, TopK)
        else _alone(flat, W_enc, b_enc, each, lead, backend, kind)
        for each in wanted
    ]
    return tuple(codes)


def _usual(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor | None,
    selection: Selection | int | tuple[Selection | int, ...],
    backend: str,
    kind: torch.dtype,
) -> SparseCodes | None:
    """What nearly all encodes are, in the time that a small one has; None: another."""
    flat = x if x.dim() == 2 else _checks.matrix(x)
    if type(selection) is TopK and selection.among is None and selection.k <= W_enc.shape[0]:
        args = flat, W_enc, b_enc, [selection.k], [selection.relu], [_EVERYONE]
        values, indices = OPS["linear_topk"](*args, backend=backend, kind=kind)
        if flat is not x:
            return _fixed(values, indices, W_enc.shape[0], x.shape[:-1])
        return SparseCodes.of_an_op(values, indices, W_enc.shape[0], None, None)
    if type(selection) is Threshold and type(selection.theta) is float:
        args = flat, W_enc, b_enc, _for_all(selection.theta)
        values, indices, offsets = OPS["linear_threshold"](*args, backend=backend, kind=kind)
        return SparseCodes.of_an_op(values, indices, W_enc.shape[0], offsets, x.shape[:-1])
    return None


def normal(selection: Any, W_enc: Tensor) -> tuple[Selection, ...]:
    """A tuple of selections that fit d_sae and the device."""
    given: tuple[Any, ...] = selection if isinstance(selection, tuple) else (selection,)
    if not given:
        raise ArgumentError("encode: an empty tuple of selections, expected at least one")
    return tuple([_normal(each, W_enc) for each in given])


def _normal(selection: Any, W_enc: Tensor) -> Selection:
    d_sae = W_enc.shape[0]
    if not isinstance(selection, (TopK, Threshold, BatchTopK)):
        if not isinstance(selection, (int, float)):
            kind = type(selection).__name__
            raise ArgumentError(f"encode: selection is a {kind}, expected TopK, Threshold, BatchTopK or an int k")
        selection = TopK(selection)  # pyright: ignore[reportArgumentType]  refuses what is no positive integer
    if isinstance(selection, Threshold):
        name, extra = "theta", selection.theta
    else:
        _checks.k_fits("encode", selection.k, d_sae)
        name, extra = "among", selection.among if isinstance(selection, TopK) else None
    if not isinstance(extra, Tensor):
        return selection
    if extra.device != W_enc.device:
        raise DeviceError(f"encode: {name} on {extra.device}, W_enc on {W_enc.device}")
    if extra.dim() > 1 or (extra.dim() == 1 and extra.shape[0] != d_sae) or (name == "among" and extra.dim() == 0):
        raise ShapeError(f"encode: {name} is {describe(extra)}, expected (d_sae,) = ({d_sae},)")
    return selection


# No mask, and thresholds for all latents, on the CPU: making one takes longer than a small product. Nobody writes them.
_EVERYONE = torch.empty(0, dtype=torch.bool)
MOST_THRESHOLDS = 64
_thresholds: dict[float, Tensor] = {}


def _for_all(theta: float) -> Tensor:
    made = _thresholds.get(theta)
    if made is None:
        with torch.inference_mode(False):
            made = torch.full((), theta, dtype=torch.float32, device="cpu")
        if type(made) is Tensor:  # not what a mode made of it, such as a fake tensor
            if len(_thresholds) >= MOST_THRESHOLDS:
                _thresholds.clear()
            _thresholds[theta] = made
    return made


def _plain(x: Tensor) -> bool:
    return type(x) is Tensor and x.is_cpu and not torch.compiler.is_compiling()


def _everyone(x: Tensor) -> Tensor:
    return _EVERYONE if _plain(x) else x.new_empty(0, dtype=torch.bool)


def top_k_call(x: Tensor, W_enc: Tensor, b_enc: Tensor | None, wanted: Sequence[TopK]) -> tuple[str, tuple[Any, ...]]:
    """The op and arguments that serve several `TopK`s in one pass."""
    everyone = _everyone(x)
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
    elif _plain(x):
        theta = _for_all(float(theta))
    else:
        theta = torch.full((), float(theta), dtype=torch.float32, device=x.device)  # `tensor` makes the host wait
    return "linear_threshold", (x, W_enc, b_enc, theta)


def _alone(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor | None,
    selection: Selection,
    lead: tuple[int, ...],
    backend: str,
    kind: torch.dtype | None,
) -> SparseCodes:
    """The codes of one selection."""
    if isinstance(selection, TopK):
        op, args = top_k_call(x, W_enc, b_enc, (selection,))
        values, indices = OPS[op](*args, backend=backend, kind=kind)
        return _fixed(values, indices, W_enc.shape[0], lead)
    op, args = ragged_call(x, W_enc, b_enc, selection)
    if isinstance(selection, Threshold) and isinstance(selection.theta, Tensor) and not _checks.usual(selection.theta):
        kind = None
    values, indices, offsets = OPS[op](*args, backend=backend, kind=kind)
    return SparseCodes(values, indices, W_enc.shape[0], offsets, tuple(lead))


def _fixed(values: Tensor, indices: Tensor, d_sae: int, lead: tuple[int, ...]) -> SparseCodes:
    """Codes of fixed width, in x's leading shape."""
    if len(lead) != 1:
        values, indices = values.reshape(*lead, values.shape[-1]), indices.reshape(*lead, indices.shape[-1])
    return SparseCodes(values, indices, d_sae)
