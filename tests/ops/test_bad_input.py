"""The boundary: whatever cannot be meant is refused with what was found and what was expected, before any kernel."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import sae_kernels as sk
from sae_kernels.errors import ArgumentError, DeviceError, DtypeError, IndexRangeError, SaeKernelsError, ShapeError

N, D, M = 4, 6, 10
x, W, b = torch.ones(N, D), torch.ones(M, D), torch.ones(M)
codes = sk.SparseCodes(torch.ones(N, 2), torch.zeros(N, 2, dtype=torch.int32), M)
elsewhere = torch.device("meta")


def encode(x: Any = x, W: Any = W, b: Any = b, selection: Any = 2) -> Any:
    return sk.encode(x, W, b, selection)


def decode(codes: Any = codes, W: Any = W, b: Any = None) -> Any:
    return sk.decode(codes, W, b)


def k(value: Any) -> list[tuple[str, Callable[[], Any]]]:
    return [
        ("TopK", lambda: encode(selection=sk.TopK(value))),
        ("BatchTopK", lambda: encode(selection=sk.BatchTopK(value))),
        ("int", lambda: encode(selection=value)),
        ("topk", lambda: sk.topk(x, value)),
    ]


CASES: dict[str, tuple[Callable[[], Any], type[SaeKernelsError], str]] = {
    # shapes and ranks
    "widths differ": (
        lambda: encode(x=torch.ones(N, 7)),
        ShapeError,
        "one d_in.*x (4, 7) float32 cpu.*W_enc (10, 6) float32 cpu",
    ),
    "encoder transposed": (lambda: encode(W=W.mT), ShapeError, "W_enc looks transposed: pass W_enc.mT"),
    "x 0-d": (lambda: encode(x=torch.ones(())), ShapeError, "x is 0-d, expected (…, d_in)"),
    "W_enc 1-d": (lambda: encode(W=b), ShapeError, "W_enc is (10,) float32 cpu, expected (d_sae, d_in)"),
    "W_enc 3-d": (lambda: encode(W=W[None]), ShapeError, "W_enc is (1, 10, 6) float32 cpu, expected (d_sae, d_in)"),
    "no latents": (
        lambda: encode(W=W[:0], b=b[:0]),
        ShapeError,
        "W_enc is (0, 6) float32 cpu, expected at least one latent",
    ),
    "b_enc of d_in": (
        lambda: encode(b=torch.ones(D)),
        ShapeError,
        "b_enc must be (d_sae,) = (10,).*b_enc (6,) float32 cpu",
    ),
    "b_enc 2-d": (lambda: encode(b=b[None]), ShapeError, "b_enc must be (d_sae,) = (10,).*b_enc (1, 10)"),
    "b_enc 0-d": (lambda: encode(b=b[0]), ShapeError, "b_enc must be (d_sae,) = (10,).*b_enc () float32"),
    "mask of another size": (
        lambda: encode(selection=sk.TopK(2, among=torch.ones(9, dtype=torch.bool))),
        ShapeError,
        "among is (9,) bool cpu, expected (d_sae,) = (10,)",
    ),
    "mask 0-d": (
        lambda: encode(selection=sk.TopK(2, among=torch.ones((), dtype=torch.bool))),
        ShapeError,
        "among is () bool cpu, expected (d_sae,) = (10,)",
    ),
    "mask 2-d": (
        lambda: encode(selection=sk.TopK(2, among=torch.ones(N, M, dtype=torch.bool))),
        ShapeError,
        "among is (4, 10) bool cpu, expected (d_sae,) = (10,)",
    ),
    "empty mask": (
        lambda: encode(selection=sk.TopK(2, among=torch.ones(0, dtype=torch.bool))),
        ShapeError,
        "among is (0,) bool cpu, expected (d_sae,) = (10,)",
    ),
    "theta of another size": (
        lambda: encode(selection=sk.Threshold(torch.ones(D))),
        ShapeError,
        "theta is (6,) float32 cpu, expected (d_sae,) = (10,)",
    ),
    "theta 2-d": (
        lambda: sk.Threshold(torch.ones(1, M)),
        ShapeError,
        "theta is (1, 10) float32 cpu, expected a number or (d_sae,)",
    ),
    "decoder of other latents": (
        lambda: decode(W=W[:9]),
        ShapeError,
        "W_dec is (9, 6) float32 cpu, the codes have d_sae = 10",
    ),
    "decoder transposed": (lambda: decode(W=W.mT), ShapeError, "W_dec looks transposed: pass W_dec.mT"),
    "W_dec 1-d": (lambda: decode(W=b), ShapeError, "W_dec is (10,) float32 cpu, expected (d_sae, d_out)"),
    "b_dec of d_sae": (lambda: decode(b=b), ShapeError, "b_dec must be (d_out,) = (6,).*b_dec (10,) float32 cpu"),
    "scores 0-d": (lambda: sk.topk(torch.ones(()), 1), ShapeError, "scores are 0-d, expected (…, M)"),
    # dtypes
    "two dtypes": (
        lambda: encode(x=x.half()),
        DtypeError,
        "one dtype expected (cast, or use torch.autocast).*x (4, 6) float16 cpu.*W_enc (10, 6) float32 cpu",
    ),
    "b_enc of another dtype": (lambda: encode(b=b.double()), DtypeError, "one dtype expected.*b_enc (10,) float64 cpu"),
    "integers": (
        lambda: encode(x=x.int()),
        DtypeError,
        "x is (4, 6) int32 cpu, expected float32, bfloat16, float16 or float64",
    ),
    "complex": (lambda: encode(x=x.to(torch.complex64)), DtypeError, "x is (4, 6) complex64 cpu"),
    "float8": (lambda: sk.topk(x.to(torch.float8_e4m3fn), 1), DtypeError, "scores is (4, 6) float8_e4m3fn cpu"),
    "mask of integers": (
        lambda: sk.TopK(2, among=torch.ones(M, dtype=torch.uint8)),
        DtypeError,
        "among is (10,) uint8 cpu, expected bool",
    ),
    "theta of integers": (
        lambda: sk.Threshold(torch.ones(M).int()),
        DtypeError,
        "theta is (10,) int32 cpu, expected a floating dtype",
    ),
    "values of another dtype": (
        lambda: decode(W=W.bfloat16()),
        DtypeError,
        "one dtype expected.*values (4, 2) float32 cpu.*bfloat16",
    ),
    # not tensors
    "a list": (lambda: encode(x=[[1.0] * D]), DtypeError, "x is a list, expected a torch.Tensor"),
    "an array": (lambda: encode(x=np.ones((N, D))), DtypeError, "x is a ndarray, expected a torch.Tensor"),
    "W_enc None": (lambda: encode(W=None), DtypeError, "W_enc is a NoneType, expected a torch.Tensor"),
    "W_dec None": (lambda: decode(W=None), DtypeError, "W_dec is a NoneType, expected a torch.Tensor"),
    "mask a list": (lambda: encode(selection=sk.TopK(2, among=[True] * M)), DtypeError, "among is a list"),  # pyright: ignore
    "sparse x": (lambda: encode(x=x.to_sparse()), DtypeError, "x has layout torch.sparse_coo, expected a strided"),
    "codes a tuple": (
        lambda: decode(codes=(codes.values, codes.indices)),
        ArgumentError,
        "codes are a tuple, expected SparseCodes",
    ),
    # devices
    "x elsewhere": (
        lambda: encode(x=x.to(elsewhere)),
        DeviceError,
        "one device expected.*x (4, 6) float32 meta.*W_enc (10, 6) float32 cpu",
    ),
    "W_dec elsewhere": (
        lambda: decode(W=W.to(elsewhere)),
        DeviceError,
        "one device expected.*W_dec (10, 6) float32 meta",
    ),
    "mask elsewhere": (
        lambda: encode(selection=sk.TopK(2, among=torch.ones(M, dtype=torch.bool, device=elsewhere))),
        DeviceError,
        "among on meta, W_enc on cpu",
    ),
    "theta elsewhere": (
        lambda: encode(selection=sk.Threshold(torch.ones(M, device=elsewhere))),
        DeviceError,
        "theta on meta, W_enc on cpu",
    ),
    # arguments
    "theta True": (lambda: sk.Threshold(True), ArgumentError, "theta = True, expected a number or a (d_sae,) tensor"),
    "theta NaN": (lambda: sk.Threshold(float("nan")), ArgumentError, "theta = nan, expected a number"),
    "theta text": (lambda: sk.Threshold("0.5"), ArgumentError, "theta = '0.5', expected a number"),  # pyright: ignore
    "no selections": (
        lambda: encode(selection=()),
        ArgumentError,
        "an empty tuple of selections, expected at least one",
    ),
    "no prefixes": (
        lambda: sk.prefix_decode(codes, W, None, []),
        ArgumentError,
        "prefixes = [], expected strictly rising within 1 … d_sae = 10",
    ),
    "prefixes level": (
        lambda: sk.prefix_decode(codes, W, None, [3, 3]),
        ArgumentError,
        "prefixes = [3, 3], expected strictly rising",
    ),
    "prefixes beyond": (
        lambda: sk.prefix_decode(codes, W, None, [3, 11]),
        ArgumentError,
        "prefixes = [3, 11], expected strictly rising",
    ),
    "prefix 0": (
        lambda: sk.prefix_decode(codes, W, None, [0, 3]),
        ArgumentError,
        "prefix = 0, expected a positive integer",
    ),
    "prefix of a tuple": (
        lambda: sk.prefix_decode((codes,), W, None, [3]),
        ArgumentError,
        "codes are a tuple, expected SparseCodes",
    ),  # pyright: ignore
}

for bad, error in (
    (0, "k = 0, expected a positive integer"),
    (-3, "k = -3, expected a positive integer"),
    (2.5, "k = 2.5 (float), expected a positive integer"),
    (2.0, "k = 2.0 (float), expected a positive integer"),
    (True, "k = True (bool), expected a positive integer"),
    (None, "k = None (NoneType), expected a positive integer"),
    ("2", "k = '2' (str), expected a positive integer"),
    (torch.tensor(2), "k = tensor(2) (Tensor), expected a positive integer"),
    (11, "k = 11, expected 1 <= k <= "),
    (2**40, f"k = {2**40}, expected 1 <= k <= "),
):
    for where, call in k(bad):
        no_selection = where == "int" and not isinstance(bad, (int, float))
        words = f"selection is a {type(bad).__name__}, expected TopK, Threshold, BatchTopK or an int k"
        CASES[f"k = {bad!r} of {where}"] = (call, ArgumentError, words if no_selection else error)


@pytest.mark.parametrize("name", CASES)
def test_refused_with_what_was_found_and_expected(name: str) -> None:
    call, error, words = CASES[name]
    with pytest.raises(error) as caught:
        call()
    pattern = ".*".join(re.escape(part) for part in words.split(".*"))
    assert re.search(pattern, str(caught.value), re.DOTALL), str(caught.value)


@pytest.mark.parametrize("index", [-1, M, 2**31 - 1])
@pytest.mark.parametrize(
    "call", [decode, lambda c, W: sk.prefix_decode(c, W, None, [M])], ids=["decode", "prefix_decode"]
)
def test_an_index_outside_the_dictionary(
    backend: str, call: Callable, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAE_KERNELS_CHECK_INDICES", "1")  # on a GPU only then
    indices = torch.zeros(N, 2, dtype=torch.int32)
    indices[2, 1] = index
    with (
        sk.use(backend),
        pytest.raises(IndexRangeError, match=rf"indices\[2, 1\] = {index}, expected 0 <= index < {M}"),
    ):
        call(sk.SparseCodes(torch.ones(N, 2), indices, M), torch.ones(M, D))


def test_a_ragged_code_whose_offsets_lie(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAE_KERNELS_CHECK_INDICES", "1")
    bad = sk.SparseCodes(torch.ones(3), torch.zeros(3, dtype=torch.int32), M, torch.tensor([0, 2, 9]))
    with sk.use(backend), pytest.raises(IndexRangeError, match="offsets"):
        decode(bad, torch.ones(M, D))


def test_errors_are_also_the_builtin_a_caller_would_catch() -> None:
    for ours, builtin in (
        (ShapeError, ValueError),
        (DtypeError, TypeError),
        (ArgumentError, ValueError),
        (IndexRangeError, IndexError),
    ):
        assert issubclass(ours, builtin)


def test_nothing_is_computed_for_a_device_no_kernel_knows() -> None:
    """All tensors on meta: shapes come back, as tracing needs, and no memory is read."""
    on_meta = sk.encode(x.to(elsewhere), W.to(elsewhere), b.to(elsewhere), 2)
    assert on_meta.values.shape == (N, 2)
    assert on_meta.values.device.type == "meta"
