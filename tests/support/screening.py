"""Problems that are hard on screening, and their scores as screening computes the ones that matter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sae_kernels.kernels import _cpu
from sae_kernels.kernels._screen import chunks, policy
from sae_kernels.kernels.sddmm import cpu as sddmm
from sae_kernels.kernels.topk import reference as topk
from support.compare import assert_same

INF, NAN, LARGEST = float("inf"), float("nan"), torch.finfo(torch.float32).max
Problem = tuple[Tensor, Tensor, Tensor]  # x, W, b


def cut_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of no more than 16 tokens and 320 latents."""
    monkeypatch.setattr(chunks, "ROWS", 16)
    monkeypatch.setattr(chunks, "COLS", 320)


def screen_by(products: str, put: Callable[[object, str, object], None] = setattr) -> None:
    """From now on, in this process, whatever the problem's size and the instruction set."""
    put(policy, "integers_pay", lambda *_: products)
    put(policy, "_large_enough", lambda x, W, ks: x.numel() > 0 and W.numel() > 0)
    put(policy, "LEAST_N_INTEGERS", dict.fromkeys(policy.LEAST_N_INTEGERS, 1))


def no_vnni() -> bool:
    """This machine lacks what its instruction set's products of integers are made with."""
    return _cpu.isa() in ("avx512", "amx") and not _cpu.ask("fast_int8")


def exact_scores(x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    """Every score as screening computes the ones that matter."""
    n, m = x.shape[0], W.shape[0]
    everything = torch.arange(m, dtype=torch.int32).repeat(n, 1)
    z = sddmm.run(x.float(), W.float(), everything, None, None)
    return z if b is None else z + b.float()


def assert_best(problem: Problem, k: int, found: list[Tensor], among: Tensor | None = None) -> None:
    """`found` are exactly the k best of the exact scores, latents ascending; then empty slots."""
    z = exact_scores(*problem)
    allowed = torch.arange(z.shape[1]) if among is None else among.nonzero().flatten()
    filled = min(k, allowed.numel())
    values, picked = topk.run(z[:, allowed], filled)
    latents, order = allowed[picked.long()].sort(1)
    assert torch.equal(found[1][:, :filled], latents.int())
    assert_same(found[0][:, :filled], values.gather(1, order).to(problem[0].dtype), signed_zeros=False)
    assert not found[0][:, filled:].any()
    assert not found[1][:, filled:].any()


def normal(n: int, d: int, m: int, dtype: torch.dtype = torch.float32) -> Problem:
    x, W, b = torch.randn(n, d), torch.randn(m, d) / d**0.5, torch.randn(m) / 10
    return x.to(dtype), W.to(dtype), b.to(dtype)


def _spread(shape: tuple[int, int]) -> Tensor:
    return 10.0 ** torch.randint(-12, 13, shape)


def _with(tensor: Tensor, *places: tuple[object, float]) -> Tensor:
    for place, value in places:
        tensor[place] = value
    return tensor


def _by_turns(count: int, even: float, odd: float) -> Tensor:
    return torch.where(torch.arange(count) % 2 == 0, even, odd)


SPECIAL = [((slice(None, None, 101), 3), NAN), ((slice(5, None, 90), 0), INF), ((slice(6, None, 50), 1), -INF)]
HARD: dict[str, Callable[[Tensor, Tensor, Tensor], Problem]] = {
    "huge": lambda x, W, b: (x * 1e15, W * 1e15, b),
    "past every bound": lambda x, W, b: (x * 1e19, W * 1e19, b),
    "one huge token": lambda x, W, b: (_with(x, ((3,), 3e38)), W, b),
    "one huge latent": lambda x, W, b: (x, _with(W, ((700,), -3e38), ((701,), 3e38)), b),
    "small": lambda x, W, b: (x * 1e-12, W * 1e-12, b * 0),
    "denormal scores": lambda x, W, b: (x * 1e-20, W * 1e-20, b * 0),
    "denormal tokens": lambda x, W, b: (x * 1e-39, W, b * 0),
    "denormal latents": lambda x, W, b: (x, W * 1e-40, b * 1e-39),
    "denormals against huge": lambda x, W, b: (x * 1e-39, W * 1e14, b * 0),
    "huge against denormals": lambda x, W, b: (x * 1e13, W * 1e-39, b * 0),
    "denormals among others": lambda x, W, b: (
        x * _by_turns(x.shape[1], 1e-39, 1e-30),
        W * _by_turns(W.shape[1], 1e14, 1),
        b * 0,
    ),
    "all equal": lambda x, W, b: (x, W[:1].repeat(W.shape[0], 1), b * 0),
    "zero": lambda x, W, b: (x * 0, W, b * 0),
    "near ties": lambda x, W, b: (x, W[:1] + 1e-6 * W, b * 0),
    "nearly equal": lambda x, W, b: (x, W[:1] + 1e-3 * W, b * 0),
    "steep biases": lambda x, W, b: (x, W, torch.arange(b.numel()) / 10),
    "rising biases": lambda x, W, b: (x, W, torch.arange(b.numel()) / 1e4),
    "rising by less than the bound": lambda x, W, b: (x, W[:1].repeat(W.shape[0], 1), torch.arange(b.numel()) * 1e-6),
    "falling biases": lambda x, W, b: (x, W, -torch.arange(b.numel()) / 1e4),
    "huge biases": lambda x, W, b: (x, W, b * 1e38),
    "largest biases": lambda x, W, b: (x * 1e13, W * 1e14, LARGEST * (1 - b.abs() * 1e-6)),
    "biases that scores push past the largest": lambda x, W, b: (x * 1e15, W * 1e16, LARGEST * b.sign()),
    "scales of tokens and latents": lambda x, W, b: (x * _spread((x.shape[0], 1)), W * _spread((W.shape[0], 1)), b),
    "scales of every element": lambda x, W, b: (x * _spread((1, x.shape[1])), W * _spread((1, W.shape[1])), b),
    "outlier columns": lambda x, W, b: (_with(x, ((..., 3), 300.0)), W * _with(torch.ones(W.shape[1]), (5, 1e3)), b),
    "all negative": lambda x, W, b: (x, W, b - 100),
    "cancelling": lambda x, W, b: (torch.cat([x, x], 1), torch.cat([W, -W * (1 + 1e-4)], 1), b * 1e-4),
    "tokens that are not finite": lambda x, W, b: (_with(x, ((2, 5), NAN), ((4, 6), INF), ((7, 0), -INF)), W, b),
    "latents that are not finite": lambda x, W, b: (x, _with(W, *SPECIAL), b),
    "infinite and NaN biases": lambda x, W, b: (x, W, _with(b, (7, NAN), (slice(9, 99), INF), (slice(99, 900), -INF))),
    "biases that mask": lambda x, W, b: (x, W, _with(b, (slice(None, 1195), -INF))),
}  # fmt: skip
