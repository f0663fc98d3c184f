"""`explain`: which kernel would run, and why the others wouldn't."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor

from .. import registry
from ..errors import unknown
from ..kernels import OPS
from ..kernels._kernel import Candidate, Explanation
from ..kernels._kernel import explain as _explain
from ..specs import resolve
from ._checks import linear, matrix
from .decode import check as check_decode
from .encode import normal, ragged_call, top_k_call
from .selections import TopK
from .topk import check as check_topk


def explain(what: str, *args: Any, backend: str = "") -> Explanation:
    """Ask every candidate kernel about a call that isn't made.

    `what` is "encode", "decode", "topk" (with the arguments of the function of that name), "patch" (with a module),
    or an op of `sae_kernels.kernels` (with its own arguments). Printing the result shows the chosen backend and each
    one's reason.

    Raises:
        UnknownNameError: nothing of that name; and whatever the call itself would raise on bad arguments.
    """
    if what == "patch":
        return _explain_patch(*args)
    if what == "encode":
        op, call = _encode_call(*args)
    elif what == "decode":
        op, call = _decode_call(*args)
    elif what == "topk":
        op, call = _topk_call(*args)
    elif what in OPS:
        op, call = what, args
    else:
        raise unknown("op", what, [*OPS, "encode", "decode", "patch"])
    names = [name for name in inspect.signature(OPS[op].fake).parameters if name != "backend"]
    return _explain(op, names, call, backend)


def _encode_call(x: Tensor, W_enc: Tensor, b_enc: Tensor | None, selection: Any) -> tuple[str, tuple[Any, ...]]:
    linear("encode", x, W_enc, b_enc)
    flat = matrix(x)
    wanted = normal(selection, W_enc)
    first = wanted[0]
    if isinstance(first, TopK):
        return top_k_call(flat, W_enc, b_enc, [each for each in wanted if isinstance(each, TopK)])
    return ragged_call(flat, W_enc, b_enc, first)


def _decode_call(codes: Any, W_dec: Tensor, b_dec: Tensor | None = None) -> tuple[str, tuple[Any, ...]]:
    values, W_dec, _ = check_decode("decode", codes, W_dec, b_dec)
    flat_values, indices, offsets = codes.with_values(values).flat()
    return "spmm", (flat_values, indices, offsets, W_dec)


def _topk_call(scores: Tensor, k: int) -> tuple[str, tuple[Any, ...]]:
    return "topk", check_topk(scores, k)


def _explain_patch(module: Any) -> Explanation:
    answers = tuple(Candidate(patch.name, resolve(patch.why_not)(module)) for patch in registry.patches.all())
    willing = [answer.backend for answer in answers if answer.reason is None]
    kind = f"{type(module).__module__}.{type(module).__qualname__}"
    because = "the first that keeps the library's semantics" if answers else "no plugin registers a patch"
    return Explanation("patch", kind, answers, willing[0] if willing else None, because)
