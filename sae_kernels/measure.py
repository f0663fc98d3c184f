"""Timing that can be trusted on a shared machine: interleaved rounds, medians, ratios within one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .ops import TopK, decode, encode


def interleaved(
    functions: dict[str, Callable[[], object]], rounds: int = 5, warmup: int = 1, settle: bool = False
) -> dict[str, float]:
    """Median milliseconds of each, run in turn so that a change of the machine's speed meets all alike.

    `settle`: a call that is not timed comes before each that is, of the same function: what it takes in a loop. Else
    the one before it may leave it costs of its own: memory that a large one gives back is slow to come by again.
    """
    for _ in range(warmup):
        for function in functions.values():
            function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            if settle:
                function()
            _finish()
            start = time.perf_counter()
            function()
            _finish()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(each) for name, each in times.items()}


def _finish() -> None:
    """A GPU works on after a call returns: wait for it."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Row:
    """One line of a comparison: milliseconds of ours and of what a researcher writes in plain PyTorch."""

    what: str
    ours_ms: float
    against: str
    other_ms: float

    @property
    def ratio(self) -> float:
        """How many times faster ours is."""
        return self.other_ms / self.ours_ms


@torch.no_grad()
def against_torch(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, k: int, rounds: int = 5
) -> list[Row]:
    """Time encode and decode against plain PyTorch: dense linear, topk and relu; dense matmul; `F.embedding_bag`.

    x (N, d_in) and the weights by the rule of rows. The results are compared before anything is timed.

    Raises:
        RuntimeError: the two disagree, so that there is nothing to time.
    """
    codes = encode(x, W_enc, b_enc, TopK(k))

    def torch_encode() -> tuple[Tensor, Tensor]:
        values, indices = functional.linear(x, W_enc, b_enc).topk(k, sorted=False)
        return values.relu(), indices

    values, indices = codes.values, codes.indices.long()
    acts = x.new_zeros(x.shape[0], W_enc.shape[0]).scatter_(1, indices, values)

    def dense_decode() -> Tensor:
        return acts @ W_dec + b_dec

    def bag_decode() -> Tensor:
        return functional.embedding_bag(indices, W_dec, per_sample_weights=values, mode="sum") + b_dec

    # Sorted values, not latents: among near-ties at rank k either choice is right.
    _agree("encode", values.sort().values, torch_encode()[0].sort().values)
    _agree("decode", decode(codes, W_dec, b_dec), dense_decode())
    ms = interleaved(
        {
            "encode": lambda: encode(x, W_enc, b_enc, TopK(k)),
            "torch encode": torch_encode,
            "decode": lambda: decode(codes, W_dec, b_dec),
            "dense decode": dense_decode,
            "bag decode": bag_decode,
        },
        rounds,
    )
    return [
        Row("encode", ms["encode"], "dense linear + topk + relu", ms["torch encode"]),
        Row("decode", ms["decode"], "dense matmul", ms["dense decode"]),
        Row("decode", ms["decode"], "embedding_bag", ms["bag decode"]),
    ]


def _agree(what: str, ours: Tensor, other: Tensor) -> None:
    """Refuse to time two computations with different results."""
    error = float((ours.float() - other.float()).norm() / other.float().norm())
    if not error <= (1e-4 if ours.dtype == torch.float32 else 2e-2):
        raise RuntimeError(f"{what}: our result differs from PyTorch's by {error:.2e} of its norm")


def table(rows: list[Row]) -> str:
    """Terminal table of a comparison."""
    lines = [f"{'':8}{'sae_kernels':>14}   {'PyTorch':>12}   {'':28}{'ratio':>6}"]
    lines += [
        f"{row.what:8}{row.ours_ms:11.2f} ms   {row.other_ms:9.2f} ms   {row.against:28}{row.ratio:5.1f}x"
        for row in rows
    ]
    return "\n".join(lines)
