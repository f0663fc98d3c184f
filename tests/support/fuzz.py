"""Random calls of every op's C++ kernel: well-formed ones, and ones with one thing wrong.

A well-formed call must return what the reference returns. One with something wrong must raise, or return what the
reference returns. Neither may touch memory beyond the tensors, or change what it is not asked to write.
Everything is small integers, so that sums of products are exact in every order (Adam aside).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_kernels.errors import SaeKernelsError
from sae_kernels.kernels._screen import BFLOAT16, INT8, INT16
from support import guarded
from support.compare import assert_same
from support.screening import no_vnni, screen_by

REFUSALS = (SaeKernelsError, RuntimeError, ValueError)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DIMS = (0, 1, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 37, 64, 67)
LONG = (255, 256, 257, 1023, 1031, 2048, 3001)
HUGE = (2**62, -(2**63), 2**63 - 1)  # nothing of this size is ever allocated
NUMBERS = (-1, 0, 1, 2**31 - 1, 2**31, -(2**31), 2**62, -(2**63), 2**63 - 1)
Args = list[Any]


@dataclass
class Draw:
    """The random choices of one call."""

    rng: random.Random
    dtype: torch.dtype

    def dim(self, *more: int) -> int:
        return self.rng.choice((*DIMS, *more))

    def maybe(self, chance: float) -> bool:
        return self.rng.random() < chance

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.rng.getrandbits(32))

    def numbers(self, *shape: int, dtype: torch.dtype | None = None, special: float = 0.1) -> Tensor:
        """Integers from -3 to 3; rarely with a NaN or an infinity."""
        drawn = torch.randint(-3, 4, shape, generator=self.generator()).to(dtype or self.dtype)
        if drawn.numel() and self.maybe(special):
            drawn.view(-1)[self.rng.randrange(drawn.numel())] = self.rng.choice((math.nan, math.inf, -math.inf))
        return drawn

    def below(self, limit: int, *shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.randint(0, max(1, limit), shape, generator=self.generator()).to(dtype)

    def codes(self, n: int, m: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """(values, indices, offsets) of n rows; hot latents, duplicates and empty slots among them."""
        if self.maybe(0.5):
            k = self.dim() if m else 0
            shape, offsets = (n, k), None
        else:
            lengths = [self.dim() if m and self.maybe(0.7) else 0 for _ in range(n)]
            offsets = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int64)
            shape = (sum(lengths),)
        indices = self.below(m, *shape)
        if self.maybe(0.2):
            indices.fill_(max(0, m - 1))
        return self.numbers(*shape, special=0.05), indices, offsets


def topk(draw: Draw) -> Args:
    n, m = draw.dim(), draw.dim(*LONG)
    return [draw.numbers(n, m, special=0.5), draw.rng.randint(0, m if draw.maybe(0.5) else min(m, 20))]


def spmm(draw: Draw) -> Args:
    n, m, d = draw.dim(), draw.dim(257), draw.dim(257)
    return [*draw.codes(n, m), draw.numbers(m, d)]


def spmm_t(draw: Draw) -> Args:
    n, m, d = draw.dim(600), draw.dim(257), draw.dim()
    return [*draw.codes(n, m), draw.numbers(n, d), m]


def spmm_backward(draw: Draw) -> Args:
    n, m, d = draw.dim(), draw.dim(257), draw.dim()
    return [draw.numbers(n, d), *draw.codes(n, m), draw.numbers(m, d)]


def sddmm(draw: Draw) -> Args:
    n, m, d = draw.dim(), draw.dim(257), draw.dim(257)
    gate, indices, offsets = draw.codes(n, m)
    return [draw.numbers(n, d), draw.numbers(m, d), indices, offsets, gate if draw.maybe(0.6) else None]


def transpose(draw: Draw) -> Args:
    n, m = draw.dim(600), draw.dim(257)
    return [*draw.codes(n, m)[1:], m]


def prefix_decode(draw: Draw) -> Args:
    n, m, d = draw.dim(), draw.dim(257), draw.dim()
    count = draw.rng.randint(1, min(m + 1, 6))
    return [*draw.codes(n, m), draw.numbers(m, d), sorted(draw.rng.sample(range(m + 1), count))]


def linear(draw: Draw) -> tuple[Tensor, Tensor, Tensor | None]:
    n, d, m = draw.dim(), draw.dim(), draw.dim(*LONG)
    return draw.numbers(n, d), draw.numbers(m, d), draw.numbers(m) if draw.maybe(0.6) else None


def linear_topk(draw: Draw) -> Args:
    x, W, b = linear(draw)
    m, count = W.shape[0], draw.rng.randint(1, 3)
    ks = [draw.rng.randint(0, m if draw.maybe(0.3) else min(m, 9)) for _ in range(count)]
    masks = [torch.rand(m, generator=draw.generator()) < draw.rng.random() for _ in ks]
    among = [mask if draw.maybe(0.4) else mask[:0] for mask in masks]
    return [x, W, b, ks, [draw.maybe(0.5) for _ in ks], among]


def linear_threshold(draw: Draw) -> Args:
    x, W, b = linear(draw)
    theta = draw.numbers(*(() if draw.maybe(0.5) else W.shape[:1]), dtype=draw.rng.choice((torch.float32, draw.dtype)))
    return [x, W, b, theta]


def linear_batch_topk(draw: Draw) -> Args:
    x, W, b = linear(draw)
    most = x.shape[0] * W.shape[0]
    return [x, W, b, draw.rng.randint(0, most if draw.maybe(0.3) else min(most, 300)), draw.maybe(0.5)]


def adam_rows(draw: Draw) -> Args:
    m, d, step = draw.dim(), draw.dim(257), draw.rng.randint(1, 9)
    normal = torch.randn(4, m, d, generator=draw.generator())
    param, exp_avg, exp_avg_sq, grad = (*normal.unbind(),)
    rows = last_step = None
    if draw.maybe(0.7):
        listed = draw.rng.sample(range(m), draw.rng.randint(0, m))
        rows, grad = torch.tensor(listed, dtype=torch.int32), grad[: len(listed)]
        last_step = draw.below(step, m, dtype=torch.int64)
    lrs = torch.rand(step + draw.rng.randrange(3), generator=draw.generator(), dtype=torch.float64) / 100
    moments = [exp_avg / 10, exp_avg_sq.square() / 10 + 0.01]
    grads = grad.to(draw.dtype) if draw.maybe(0.9) else None
    flags = [draw.maybe(0.5), draw.maybe(0.5)]
    return [param.to(draw.dtype), *moments, grads, rows, last_step, lrs, step, 0.9, 0.99, 1e-8, *flags]


def latent_topn(draw: Draw) -> Args:
    n, m, best = draw.dim(600), draw.dim(257), draw.rng.choice((0, 1, 2, 5, 17))
    held = [torch.full((m, best), -math.inf), torch.full((m, best), -1)]
    if draw.maybe(0.5):
        torch.ops.sae_kernels.latent_topn(*held, *draw.codes(n, m), 0, backend="reference")
    return [*held, *draw.codes(n, m), draw.rng.choice((n, 10**12))]


CALLS: dict[str, Callable[[Draw], Args]] = {
    call.__name__: call
    for call in (
        topk,
        spmm,
        spmm_t,
        spmm_backward,
        sddmm,
        transpose,
        prefix_decode,
        linear_topk,
        linear_threshold,
        linear_batch_topk,
        adam_rows,
        latent_topn,
    )
}
IN_PLACE = {"adam_rows": (0, 1, 2, 5), "latent_topn": (0, 1)}


def spoilt_tensor(tensor: Tensor, rng: random.Random) -> Tensor:
    """Another shape or dtype, or a number that means nothing."""
    kind = rng.choice(("number", "number", "number", "short", "narrow", "long", "rank", "rank", "dtype"))
    if kind == "number" and tensor.numel() and tensor.dtype in (torch.int32, torch.int64):
        tensor = tensor.clone()
        limits = torch.iinfo(tensor.dtype)
        number = min(max(rng.choice((*NUMBERS, tensor.numel(), tensor.numel() + 1)), limits.min), limits.max)
        tensor.view(-1)[rng.randrange(tensor.numel())] = number
        return tensor
    if kind == "dtype":
        return tensor.to(
            rng.choice((torch.float64, torch.float32, torch.float16, torch.int64, torch.int32, torch.bool))
        )
    if kind == "rank":
        return rng.choice((tensor.flatten(), tensor.unsqueeze(0), tensor.unsqueeze(-1), tensor.new_zeros(())))
    if kind == "long" and tensor.dim():
        return torch.cat([tensor, tensor[:1]]) if tensor.shape[0] else tensor.new_zeros(1, *tensor.shape[1:])
    return tensor[..., 1:] if kind == "narrow" and tensor.dim() else tensor[1:] if tensor.dim() else tensor.expand(2)


def spoil(args: Args, rng: random.Random) -> None:
    """Make one argument wrong, or at least another."""
    at = rng.randrange(len(args))
    arg = args[at]
    if isinstance(arg, Tensor):
        args[at] = spoilt_tensor(arg, rng)
    elif isinstance(arg, bool):
        args[at] = not arg
    elif isinstance(arg, int):
        args[at] = rng.choice((-1, 0, 1, arg - 1, arg + 1, *HUGE))
    elif isinstance(arg, list) and arg and isinstance(arg[0], Tensor):
        arg[0] = spoilt_tensor(arg[0], rng)
    elif isinstance(arg, list):
        args[at] = rng.choice((arg[::-1], arg[1:], [*arg, *arg[-1:]], [*arg[1:], rng.choice(NUMBERS)]))


def tensors(args: Sequence[Any]) -> list[Tensor]:
    flat = [item for arg in args for item in (arg if isinstance(arg, (list, tuple)) else [arg])]
    return [item for item in flat if isinstance(item, Tensor)]


def laid_out(op: str, args: Args, rng: random.Random, spoilt: bool) -> Args:
    """The arguments between forbidden pages, at random strides; what is written in place keeps one that may be, unless
    the call is `spoilt` anyway."""
    made = []
    for at, arg in enumerate(args):
        whole = op == "latent_topn" or (op, at) == ("adam_rows", 5)  # these are written as one array
        layouts = guarded.ALL
        if at in IN_PLACE.get(op, ()):
            layouts = guarded.STRIDED if spoilt else ("contiguous",) if whole else guarded.IN_PLACE
        if isinstance(arg, Tensor):
            listed = arg.dtype in (torch.int32, torch.int64) and arg.dim() < 2  # one number everywhere would be wrong
            made.append(guarded.lay(arg, rng, guarded.EACH if listed and layouts is guarded.ALL else layouts))
        else:
            lays = isinstance(arg, list) and arg and isinstance(arg[0], Tensor)
            made.append([guarded.lay(item, rng) for item in arg] if lays else arg)
    return made


def plain(args: Args) -> Args:
    """The same numbers, contiguous."""
    return [
        [item.resolve_neg().clone() for item in arg]
        if isinstance(arg, list) and arg and isinstance(arg[0], Tensor)
        else arg.resolve_neg().clone(memory_format=torch.contiguous_format)
        if isinstance(arg, Tensor)
        else arg
        for arg in args
    ]


def in_order(values: Tensor, indices: Tensor) -> list[Tensor]:
    """Slots of a row by latent: backends may list them in any order."""
    first = torch.sort(values.nan_to_num(9e9, 8e9, -8e9), dim=1, stable=True).indices
    values, indices = values.gather(1, first), indices.gather(1, first)
    then = torch.sort(indices, dim=1, stable=True).indices
    return [values.gather(1, then), indices.gather(1, then)]


def results(op: str, returned: Any, args: Args) -> list[Tensor]:
    """What to compare: what was returned, or written."""
    if op in IN_PLACE:
        return [args[at].clone() for at in IN_PLACE[op] if args[at] is not None]
    found = [returned] if isinstance(returned, Tensor) else list(returned)
    if op in ("topk", "linear_topk"):
        return [t for at in range(0, len(found), 2) for t in in_order(found[at], found[at + 1])]
    return found


def compare(op: str, found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        if op == "adam_rows" and mine.is_floating_point():
            tolerance = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}[mine.dtype]
            torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)
        else:
            assert_same(mine, theirs, signed_zeros=False)


def unchanged(op: str, args: Args, before: list[Tensor], refused: bool) -> None:
    """No byte of the arguments' storages changed, but those of the views that are written."""
    written = {id(args[at]) for at in IN_PLACE.get(op, ())} if not refused else set()
    for tensor, old in zip(tensors(args), before, strict=True):
        if id(tensor) in written:
            restored = old.clone()
            view = torch.empty(0, dtype=tensor.dtype).set_(
                restored.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride()
            )  # pyright: ignore[reportCallIssue]
            view.copy_(tensor)
            old = restored
        assert torch.equal(guarded.bytes_of(tensor), old), "memory was written that is not an output"


def run_case(op: str, number: int) -> str:
    """One call, the same for the same number. Returns how it ended."""
    rng = random.Random(f"{op} {number}")
    draw = Draw(rng, rng.choice(DTYPES))
    args, spoilt = CALLS[op](draw), rng.random() < 0.4
    if spoilt:
        spoil(args, rng)
    args = laid_out(op, args, rng, spoilt)
    numbers, before = plain(args), [guarded.bytes_of(t).clone() for t in tensors(args)]
    kernel, threads = getattr(torch.ops.sae_kernels, op), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        products = rng.choice((BFLOAT16, "off") if no_vnni() else (BFLOAT16, INT8, INT16, "off"))
        patch.setenv("SAE_KERNELS_SCREENING", {BFLOAT16: "on", "off": "off"}.get(products, "auto"))
        screen_by(products, patch.setattr)
        patch.setattr(torch, "empty", guarded.empty)
        torch.set_num_threads(rng.randint(1, 3))
        try:
            for _ in range(rng.choice((0, 2)) if op.startswith("linear") and not spoilt else 0):
                kernel(*args, backend="cpu")  # weights that come back are screened by a copy
            found = results(op, kernel(*args, backend="cpu"), args)
        except REFUSALS as error:
            if not spoilt:
                raise AssertionError("a well-formed call was refused") from error
            found = None
        finally:
            torch.set_num_threads(threads)
    unchanged(op, args, before, found is None)
    if found is None:
        return "refused"
    expected = results(op, kernel(*numbers, backend="reference"), numbers)
    compare(op, found, expected)
    return "spoilt" if spoilt else "equal"
