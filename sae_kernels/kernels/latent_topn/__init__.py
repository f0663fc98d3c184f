"""`latent_topn`: the running n best (activation, token) of each latent, from a stream of codes, in place.

`best_values` float32 (d_sae, n) descending and `best_tokens` int64 (d_sae, n); unused entries are (−inf, −1). Row r
of the codes is token `first_token + r`. Ties go to the earlier token; empty and NaN slots are skipped.
"""

from __future__ import annotations

from torch import Tensor

from .._kernel import Op


def _fake(
    best_values: Tensor,
    best_tokens: Tensor,
    values: Tensor,
    indices: Tensor,
    offsets: Tensor | None,
    first_token: int,
    backend: str = "",
) -> None:
    return None


OP = Op(
    "latent_topn",
    "(Tensor(a!) best_values, Tensor(b!) best_tokens, Tensor values, Tensor indices, Tensor? offsets, "
    'int first_token, *, str backend="") -> ()',
    _fake,
).register()
