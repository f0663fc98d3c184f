"""Inputs that tests and benchmarks share: sizes, activations, codes, scores, layouts; fixed by their seed.

They are drawn on the CPU, so that they are the same everywhere, and moved to torch's default device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sae_kernels import SparseCodes


@dataclass(frozen=True)
class Size:
    """N tokens, width d, d_sae latents, k active a token."""

    n: int
    d: int
    d_sae: int
    k: int

    def __str__(self) -> str:
        return f"N{self.n}-d{self.d}-M{self.d_sae}-k{self.k}"


SIZES = {
    "small": Size(1024, 256, 8192, 32),
    "S": Size(4096, 768, 24_576, 32),
    "L": Size(2048, 2304, 65_536, 64),
    "XL": Size(256, 1024, 1_048_576, 64),
}

SMALL = (
    Size(1, 1, 1, 1),
    Size(5, 3, 7, 2),
    Size(3, 17, 33, 33),  # k = M
    Size(9, 1, 11, 4),  # d = 1
    Size(7, 67, 1, 1),  # M = 1
    Size(33, 70, 129, 5),
    Size(2, 131, 1031, 31),
)
EMPTY = (Size(0, 5, 9, 3), Size(4, 0, 9, 3))  # no tokens, no width
ORDINARY = Size(37, 45, 301, 7)


def generator(seed: int) -> torch.Generator:
    """A source of its own for every case: the global state is left alone."""
    return torch.Generator().manual_seed(seed)


def on_default_device(tensor: Tensor) -> Tensor:
    """Where tests of a GPU want it: `torch.set_default_device("cuda")` is in force there."""
    return tensor.to(torch.get_default_device())


def everyone() -> Tensor:
    """What `linear_topk` takes for a selection among all latents."""
    return torch.empty(0, dtype=torch.bool)


def some(n: int, share: float, seed: int = 0) -> Tensor:
    """A random mask of n latents."""
    return on_default_device(torch.rand(n, generator=generator(seed), device="cpu") < share)


def permutation(n: int, seed: int = 0) -> Tensor:
    """0 … n-1 in random order, int32."""
    return on_default_device(torch.randperm(n, generator=generator(seed), device="cpu").int())


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Gaussian, rounded to `dtype`."""
    drawn = torch.randn(*shape, generator=generator(seed), device="cpu") * scale
    return on_default_device(drawn.to(dtype))


def integers(*shape: int, low: int = -3, high: int = 3, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Small integers: their sums of products are exact in every dtype, so ties are ties on every backend."""
    drawn = torch.randint(low, high + 1, shape, generator=generator(seed), device="cpu")
    return on_default_device(drawn.to(dtype))


def dictionary(size: Size, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """W_enc, b_enc, W_dec, b_dec with pre-acts of about unit size."""
    scale = max(size.d, 1) ** -0.5
    return (
        normal(size.d_sae, size.d, dtype=dtype, seed=seed + 1, scale=scale),
        normal(size.d_sae, dtype=dtype, seed=seed + 2, scale=0.1),
        normal(size.d_sae, size.d, dtype=dtype, seed=seed + 3, scale=scale),
        normal(size.d, dtype=dtype, seed=seed + 4, scale=0.1),
    )


def _uniform(n: int, m: int, source: torch.Generator) -> Tensor:
    return torch.randint(0, m, (n,), generator=source)


def _zipf(n: int, m: int, source: torch.Generator) -> Tensor:
    """Latent i with probability ∝ 1/(i+1): a few hot ones, a long tail."""
    weights = 1 / torch.arange(1, m + 1, dtype=torch.float64)
    return torch.searchsorted(
        weights.cumsum(0) / weights.sum(), torch.rand(n, generator=source, dtype=torch.float64)
    ).clamp_max(m - 1)


def _hot(n: int, m: int, source: torch.Generator) -> Tensor:
    """Half of all slots hit one latent."""
    drawn = _uniform(n, m, source)
    drawn[::2] = m // 2
    return drawn


def _one(n: int, m: int, source: torch.Generator) -> Tensor:
    return torch.full((n,), m - 1)


DRAWS: dict[str, Callable[[int, int, torch.Generator], Tensor]] = {
    "uniform": _uniform,  # duplicates inside a row happen, and are legal
    "zipf": _zipf,
    "hot": _hot,
    "one_latent": _one,  # every slot of every token
}


def codes(
    size: Size,
    dtype: torch.dtype = torch.float32,
    draw: str = "uniform",
    *,
    ragged: bool = False,
    empty: float = 0.2,
    seed: int = 0,
) -> SparseCodes:
    """Codes with a fraction `empty` of empty slots; ragged ones have rows of 0 … 2k slots."""
    with torch.device("cpu"):
        made = _codes(size, dtype, draw, ragged, empty, generator(seed))
    return made.to(torch.get_default_device())


def _codes(
    size: Size, dtype: torch.dtype, draw: str, ragged: bool, empty: float, source: torch.Generator
) -> SparseCodes:
    offsets = None
    count = size.n * size.k
    if ragged:
        lengths = torch.randint(0, 2 * size.k + 1, (size.n,), generator=source)
        lengths[::4] = 0
        offsets = torch.zeros(size.n + 1, dtype=torch.int64)
        offsets[1:] = lengths.cumsum(0)
        count = int(offsets[-1])
    indices = DRAWS[draw](count, size.d_sae, source).int()
    values = torch.randn(count, generator=source).to(dtype)
    values[torch.rand(count, generator=source) < empty] = 0
    if offsets is None:
        values, indices = values.reshape(size.n, size.k), indices.reshape(size.n, size.k)
    return SparseCodes(values, indices, size.d_sae, offsets)


def _few_positive(n: int, m: int, source: torch.Generator) -> Tensor:
    """About three positive scores a row."""
    scores = -torch.rand(n, m, generator=source)
    return torch.where(torch.rand(n, m, generator=source) < 3 / m, -scores, scores)


def _nans(n: int, m: int, source: torch.Generator) -> Tensor:
    """NaN of both signs, ±inf and numbers."""
    scores = torch.randn(n, m, generator=source)
    kind = torch.randint(0, 12, (n, m), generator=source)
    for i, special in enumerate((float("nan"), -float("nan"), float("inf"), -float("inf"))):
        scores[kind == i] = special
    return scores


def _zeros(n: int, m: int, source: torch.Generator) -> Tensor:
    """+0 and -0, which tie, among small integers."""
    scores = torch.randint(-1, 2, (n, m), generator=source).float()
    return torch.where(torch.rand(n, m, generator=source) < 0.5, -scores, scores)


SCORES: dict[str, Callable[[int, int, torch.Generator], Tensor]] = {
    "normal": lambda n, m, source: torch.randn(n, m, generator=source),
    "ties": lambda n, m, source: torch.randint(-3, 4, (n, m), generator=source).float(),
    "equal": lambda n, m, source: torch.ones(n, m),
    "negative": lambda n, m, source: -torch.rand(n, m, generator=source) - 0.5,
    "few_positive": _few_positive,
    "nan_inf": _nans,
    "all_nan": lambda n, m, source: torch.full((n, m), float("nan")),
    "minus_inf": lambda n, m, source: torch.full((n, m), -float("inf")),
    "signed_zeros": _zeros,
    "ascending": lambda n, m, source: torch.arange(n * m).reshape(n, m).float() % 251,
    "descending": lambda n, m, source: -torch.arange(n * m).reshape(n, m).float() % 251,
}


def scores(kind: str, n: int, m: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """(n, m) scores of one kind, rounded to `dtype`."""
    with torch.device("cpu"):
        made = SCORES[kind](n, m, generator(seed)).to(dtype)
    return on_default_device(made)


def layouts(tensor: Tensor) -> dict[str, Tensor]:
    """The same matrix in every layout a caller may pass."""
    rows, cols = tensor.shape
    padded = tensor.new_full((rows, cols + 3), float("nan") if tensor.is_floating_point() else 77)
    padded[:, 1 : cols + 1] = tensor
    spread = tensor.new_zeros(2 * rows + 1, 2 * cols + 1)
    spread[1::2, 1::2] = tensor
    return {
        "contiguous": tensor.contiguous(),
        "transposed": tensor.mT.contiguous().mT,
        "padded": padded[:, 1 : cols + 1],
        "strided": spread[1::2, 1::2],
    }
