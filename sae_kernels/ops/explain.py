"""`explain`: which kernel would run, and why the others wouldn't."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .. import registry
from ..errors import ArgumentError, unknown
from ..kernels import OPS
from ..kernels._explanation import Candidate, Explanation
from ..kernels._kernel import explain as _explain
from ..specs import resolve
from ._checks import linear, matrix
from ._screening import BACKENDS, backend_for, set_from_outside
from .decode import check as check_decode
from .encode import normal, ragged_call, top_k_call
from .selections import Selection, TopK
from .topk import check as check_topk


def explain(what: str, *args: Any, backend: str = "", screening: str = "") -> Explanation:
    """Ask every candidate kernel about a call that isn't made.

    `what` is "encode", "decode", "topk" (with the arguments of the function of that name), "patch" (with a module),
    or an op of `sae_kernels.kernels` (with its own arguments). Printing the result shows the chosen backend and each
    one's reason. `screening` is that of `encode`: one that is right but for a probability shows it.

    Raises:
        UnknownNameError: nothing of that name; and whatever the call itself would raise on bad arguments.
    """
    if screening != "" and what != "encode":
        raise ArgumentError(f'explain: screening="{screening}" is an argument of "encode" alone, found "{what}"')
    if what == "patch":
        return _explain_patch(*args)
    if what == "encode":
        op, call, wanted = _encode_call(*args)
        backend = _screened(op, call, wanted, backend, screening)
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


def _screened(op: str, call: tuple[Any, ...], wanted: Sequence[Any], backend: str, screening: str) -> str:
    """The backend that the argument asks for, or, where its kernel would run, the environment."""
    if screening != "":
        return backend_for(screening, backend, wanted)
    outside = "" if backend else set_from_outside()
    if outside and all(isinstance(each, TopK) for each in wanted):
        mine = BACKENDS[outside]
        if _explain(op, (), call, mine).chosen == mine:
            return mine
    return backend


def _encode_call(
    x: Tensor, W_enc: Tensor, b_enc: Tensor | None, selection: Any
) -> tuple[str, tuple[Any, ...], tuple[Selection, ...]]:
    linear("encode", x, W_enc, b_enc)
    flat = matrix(x)
    wanted = normal(selection, W_enc)
    first = wanted[0]
    if isinstance(first, TopK):
        return *top_k_call(flat, W_enc, b_enc, [each for each in wanted if isinstance(each, TopK)]), wanted
    return *ragged_call(flat, W_enc, b_enc, first), wanted


def _decode_call(codes: Any, W_dec: Tensor, b_dec: Tensor | None = None) -> tuple[str, tuple[Any, ...]]:
    values, W_dec, _, _ = check_decode("decode", codes, W_dec, b_dec)
    flat_values, indices, offsets = codes.with_values(values).flat()
    return "spmm", (flat_values, indices, offsets, W_dec)


def _topk_call(scores: Tensor, k: int) -> tuple[str, tuple[Any, ...]]:
    return "topk", check_topk(scores, k)[:2]


def _explain_patch(module: Any) -> Explanation:
    answers = tuple(Candidate(patch.name, resolve(patch.why_not)(module)) for patch in registry.patches.all())
    willing = [answer.backend for answer in answers if answer.reason is None]
    kind = f"{type(module).__module__}.{type(module).__qualname__}"
    because = "the first that keeps the library's semantics" if answers else "no plugin registers a patch"
    return Explanation("patch", kind, answers, willing[0] if willing else None, because)
