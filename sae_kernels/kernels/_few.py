"""A few tokens: an encode is one C++ call (csrc/few). It reads W once, and no scratch is as large as a row of scores.

Scores are summed in float32 as screening sums those it computes exactly: one by one, in an order that depends neither
on threads nor on how many tokens there are. Where a copy of W in bfloat16 is kept (`_screen.kept`), it is read instead,
and W only where the copy's bounds leave a choice: half the traffic, the same result. Without one, W is read as it is.

With AMX, products with the copy are made in its tiles from 4 tokens on (csrc/few/tiles.inl.h): tested in emulation, not
timed. There, up to 256 tokens of very many latents go this way too, once a copy is there (`copy_for_many`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _cpu
from ._screen.kept import contradicted, has, kept
from ._screen.policy import mode
from ._screen.rounded import Rounded

MOST_TOKENS = 32
# With AMX and a copy. Prototypes of such tiles took 377 ms at 256 tokens, d 1024, 1048576 latents, where `torch.mm` on
# chunks took 448; with more tokens and fewer latents they gained 4 to 7 %. These tiles have not been timed.
TILED_TOKENS, TILED_LATENTS = 256, 1 << 18
TILED_BYTES = 24 << 20  # of candidates; beside them, tokens take 2 d bytes each, their scores 832 of each thread
MOST_BFLOAT16 = 31  # of W in bfloat16: more are screened (`_screen.policy`) without a copy
CANDIDATES = 1 << 20  # k of all tokens and threads: 16 to 32 bytes each
# Below, a copy saves little: W stays in the caches, or a call is mostly overhead.
LEAST_D, LEAST_ELEMENTS = 64, 1 << 22
LATENTS_A_CHOICE = 24  # with fewer latents for each one chosen, too many are computed twice
LEAST_ROOM, MOST_ROOMS = 256, 64  # of values a token; of sizes that are remembered
IN_PLACE = 1024  # values whose room, 8 KiB of it, is not worth a copy to give back what is left
ROWS_A_LOOK = 16  # the copy is compared with one row in so many before it is used
DOTS = True  # whether to use instructions for bfloat16 where they are fast; without them it is widened
NO_COPY = (0, 0, 0, False)
CONTRADICTED = 2  # kernels.h: SK_CONTRADICTED


def takes(x: Tensor, W: Tensor, chosen: int = 0) -> bool:
    """Whether this problem is small enough in tokens, and its rows of W lie in one piece each."""
    n, d = x.shape
    return (
        0 < n <= (MOST_BFLOAT16 if W.dtype is torch.bfloat16 else MOST_TOKENS)
        and d > 0
        and W.shape[0] > 0
        and (W.stride()[1] == 1 or d == 1)
        and n * chosen * torch.get_num_threads() <= CANDIDATES
        and not W.is_neg()
    )


def _where(x: Tensor, W: Tensor, b: Tensor | None) -> tuple[int, ...] | None:
    """Addresses, sizes and strides as C++ takes them, where these arguments are what they nearly always are; None where
    somebody has to look closer. Every attribute of a tensor is read once: a call for one token of a small dictionary is
    made of little else."""
    of_x, of_W = x.shape, W.shape
    if len(of_x) != 2 or len(of_W) != 2:
        return None
    (n, d), m, x_steps, W_steps = of_x, of_W[0], x.stride(), W.stride()
    if (
        0 < n <= MOST_BFLOAT16
        and 0 < d == of_W[1]
        and m > 0
        and x_steps[1] == 1 == W_steps[1]
        and not (x.is_neg() or W.is_neg())
        and (b is None or (b.shape == of_W[:1] and b.is_contiguous() and not b.is_neg()))
    ):
        return x.data_ptr(), n, d, x_steps[0], W.data_ptr(), m, d, W_steps[0], 0 if b is None else b.data_ptr()
    return None


def one_top_k(x: Tensor, W: Tensor, b: Tensor | None, k: int, relu: bool, among: Tensor | None) -> list[Tensor] | None:
    """`top_k` of arguments that are not checked; None where somebody has to look closer."""
    where = _where(x, W, b)
    if where is None or not (among is None or among.numel() == 0):
        return None
    n, m = where[1], where[5]
    if not (0 < k <= m and n * k * torch.get_num_threads() <= CANDIDATES):
        return None
    values, indices = x.new_empty(n, k), _cpu.INT32.new_empty(n, k)
    copy = copy_of(W, k)  # held until C++ has read it: another thread may free it meanwhile
    out = (k, relu, 0, values.data_ptr(), indices.data_ptr())
    if _cpu.tell("few_topk", _cpu.DTYPES[x.dtype], *where, *_addresses(copy), *out) & CONTRADICTED:
        contradicted(W)
    return [values, indices]


def one_threshold(x: Tensor, W: Tensor, b: Tensor | None, theta: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """`threshold` of arguments that are not checked, where little is kept; None where somebody has to look closer."""
    where = _where(x, W, b)
    if where is None or theta.dim() or theta.dtype is not torch.float32 or theta.is_neg():
        return None
    n, room = where[1], where[1] * LEAST_ROOM
    if room > IN_PLACE:
        return None
    values, indices, offsets = x.new_empty(room), _cpu.INT32.new_empty(room), _cpu.INT64.new_empty(n + 1)
    copy = copy_of(W, 0)
    out = (theta.data_ptr(), 0, room, offsets.data_ptr(), values.data_ptr(), indices.data_ptr())
    if _cpu.tell("few_threshold", _cpu.DTYPES[x.dtype], *where, *_addresses(copy), *out) & CONTRADICTED:
        contradicted(W)
    count = offsets.tolist()[-1]
    return (values.resize_(count), indices.resize_(count), offsets) if count <= room else None


IN_WORDS = "a few tokens, in one call"


def copy_of(W: Tensor, chosen: int, rows_a_look: int = ROWS_A_LOOK) -> Rounded | None:
    """The copy to screen with."""
    m, d = W.shape
    wanted = mode()
    if wanted == "off" or W.dtype is torch.bfloat16:
        return None
    if wanted != "on" and (d < LEAST_D or m * d < LEAST_ELEMENTS or LATENTS_A_CHOICE * chosen > m):
        return None
    return kept(W, rows_a_look)


def copy_for_many(x: Tensor, W: Tensor, chosen: int) -> Rounded | None:
    """The copy to screen more tokens with than `takes` takes, in one call; None: other ways serve these better."""
    n, threads = x.shape[0], torch.get_num_threads()
    if not MOST_TOKENS < n <= TILED_TOKENS or W.shape[0] < TILED_LATENTS or _cpu.isa() != "amx":
        return None
    if W.stride()[1] != 1 or W.is_neg() or not has(W):
        return None
    if 12 * _cpu.ask("screened_topk_room", chosen) * n * threads > TILED_BYTES:
        return None
    return copy_of(W, chosen, 1)


def _addresses(copy: Rounded | None) -> tuple[int, int, int, bool]:
    return NO_COPY if copy is None else (copy.data.data_ptr(), *copy.norms(), DOTS)


def call(name: str, x: Tensor, W: Tensor, b: Tensor | None, copy: Rounded | None, *rest: Any) -> None:
    """Run one of csrc/few on these inputs; a copy that turns out to be another matrix's is freed."""
    if x.is_neg() or x.stride()[1] != 1:
        x = _cpu.matrix(x)
    if b is not None and (b.is_neg() or not b.is_contiguous()):
        b = _cpu.flat(b, x.dtype, "b")
    of_x, of_W = _cpu.pointers(x), (*_cpu.pointers(W), 0 if b is None else b.data_ptr())
    if _cpu.tell(name, _cpu.DTYPES[x.dtype], *of_x, *of_W, *_addresses(copy), *rest) & CONTRADICTED:
        contradicted(W)


def top_k(
    x: Tensor, W: Tensor, b: Tensor | None, k: int, relu: bool, among: Tensor | None, copy: Rounded | None
) -> list[Tensor]:
    """One selection of `linear_topk`, k ≥ 1; arguments are checked."""
    n = x.shape[0]
    values, indices = torch.empty(n, k, dtype=x.dtype), torch.empty(n, k, dtype=torch.int32)
    mask = None if among is None or among.numel() == 0 else _cpu.flat(among, torch.bool, "among")
    at = 0 if mask is None else mask.data_ptr()
    call("few_topk", x, W, b, copy, k, relu, at, values.data_ptr(), indices.data_ptr())
    return [values, indices]


_rooms: dict[int, int] = {}  # of values that were kept of so many latents, at most


def threshold(x: Tensor, W: Tensor, b: Tensor | None, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`linear_threshold`; θ float32 and contiguous. A call that keeps more than any before it takes twice as long."""
    n, m = x.shape[0], W.shape[0]
    offsets = torch.empty(n + 1, dtype=torch.int64)
    copy = copy_of(W, 0)
    room = n * max(LEAST_ROOM, _rooms.get(m, 0))
    while True:
        values, indices = torch.empty(room, dtype=x.dtype), torch.empty(room, dtype=torch.int32)
        out = (room, offsets.data_ptr(), values.data_ptr(), indices.data_ptr())
        call("few_threshold", x, W, b, copy, theta.data_ptr(), theta.dim(), *out)
        count = offsets.tolist()[-1]
        if count <= room:
            return values.narrow(0, 0, count).clone(), indices.narrow(0, 0, count).clone(), offsets
        room = count
        _rooms[m] = min(m // 8, 2 * (-(-count // n)))  # so much is allocated from now on
        if len(_rooms) > MOST_ROOMS:
            _rooms.pop(next(iter(_rooms)))
