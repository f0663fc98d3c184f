"""The one place where tensors become pointers for the C++ kernels (`sae_kernels._cpu`).

A backend file `<op>/cpu.py` checks how its arguments fit together, allocates its outputs, and hands `call`
what the helpers here made of each tensor: addresses and sizes as plain integers, 2 µs a tensor cheaper than
DLPack. C++ in turn checks indices, offsets and rows before it follows them. Callers keep the tensors alive
until `call` returns.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from types import ModuleType
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..errors import (
    BackendError,
    ConfigError,
    DeviceError,
    DtypeError,
    IndexRangeError,
    ShapeError,
    describe,
)

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # kernels.h: SK_F32, SK_BF16, SK_F16
INT32 = torch.empty(0, dtype=torch.int32)  # `new_empty` takes 0.2 µs less than `torch.empty` with a dtype
INT64 = torch.empty(0, dtype=torch.int64)
STRIDED = torch.strided
HUGE_BYTES = 8 << 20


@functools.cache
def _load() -> tuple[ModuleType | None, str]:
    """The extension with its instruction set chosen, or why there is none."""
    try:
        extension = importlib.import_module("sae_kernels._cpu")
    except ImportError as error:
        reason = f"the C++ extension is not built ({error})"
        warnings.warn(f"sae_kernels: {reason}; ops run on the slow reference", RuntimeWarning, stacklevel=3)
        return None, reason
    try:
        extension.isa()
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return extension, ""


def available() -> bool:
    """The extension can be used here."""
    return _load()[0] is not None


def isa() -> str | None:
    """The instruction set in use (pinned by SAE_KERNELS_ISA); None without the extension."""
    extension = _load()[0]
    return extension.isa() if extension else None


def isas() -> list[str]:
    """The instruction sets this machine runs, best first."""
    extension = _load()[0]
    return extension.isas() if extension else []


def why_not(*tensors: Tensor | None) -> str | None:
    """Why these tensors of one dtype cannot be given to C++ (None: they can)."""
    extension, reason = _load()
    if extension is None:
        return reason
    first = tensors[0] if tensors else None
    dtype = None if first is None else first.dtype
    for tensor in tensors:  # the usual, without a word on what is wrong
        if tensor is not None and not (tensor.is_cpu and tensor.dtype is dtype and tensor.layout is STRIDED):
            break
    else:
        if dtype in DTYPES:
            return None
    dtype = None
    for tensor in tensors:
        if tensor is None:
            continue
        if not tensor.is_cpu:
            return f"device is {tensor.device.type} (needs cpu)"
        if tensor.layout is not torch.strided:
            return f"layout is {tensor.layout} (needs torch.strided)"
        if tensor.dtype not in DTYPES:
            return f"dtype is {_name(tensor.dtype)} (needs float32, bfloat16 or float16)"
        if tensor.dtype != (dtype or tensor.dtype):
            return f"dtypes differ: {_name(dtype)} and {_name(tensor.dtype)}"
        dtype = tensor.dtype
    return None


def in_place_why_not(*tensors: Tensor) -> str | None:
    """Why matrices that are written in place cannot be: unlike inputs, they are never copied."""
    for tensor in tensors:
        if tensor.dim() != 2:
            return f"{describe(tensor)} is not a matrix"
        rows, cols = tensor.shape
        if (cols > 1 and tensor.stride(1) != 1) or (rows > 1 and tensor.stride(0) < cols):
            return f"strides {tensor.stride()} of a matrix written in place (needs inner stride 1)"
    return None


def dtype_code(tensor: Tensor) -> int:
    """The dtype as kernels.h counts it."""
    try:
        return DTYPES[tensor.dtype]
    except KeyError:
        raise DtypeError(f"{describe(tensor)}: the C++ kernels take float32, bfloat16 and float16") from None


def matrix(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A (rows, cols) tensor C++ can read: any row stride, inner stride 1 (copied where it has another)."""
    if (  # the usual, in little time
        dtype is None
        and tensor.is_cpu
        and tensor.layout is STRIDED
        and tensor.dim() == 2
        and tensor.stride()[1] == 1
        and not tensor.is_neg()
    ):
        return tensor
    _check(tensor, dtype or tensor.dtype)
    if tensor.dim() != 2:
        raise ShapeError(f"{describe(tensor)}: expected a matrix")
    if tensor.is_neg():
        tensor = tensor.resolve_neg()
    return tensor if tensor.shape[1] <= 1 or tensor.stride(1) == 1 else tensor.contiguous()


def flat(tensor: Tensor, dtype: torch.dtype, what: str, numel: int | None = None) -> Tensor:
    """A tensor C++ can read as one contiguous array (copied where it isn't)."""
    _check(tensor, dtype, what)
    if numel is not None and tensor.numel() != numel:
        raise ShapeError(f"{what} is {describe(tensor)}, expected {numel} elements")
    return (tensor.resolve_neg() if tensor.is_neg() else tensor).contiguous()


def in_place_matrix(tensor: Tensor, dtype: torch.dtype, what: str) -> None:
    """Refuse a matrix that C++ could not write in place."""
    _check(tensor, dtype, what)
    reason = in_place_why_not(tensor)
    if reason:
        raise ShapeError(f"{what}: {reason}")


def writable(tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, what: str) -> None:
    """Refuse a tensor of another shape, or one C++ could not write as one contiguous array."""
    _check(tensor, dtype, what)
    if tensor.shape != shape or not tensor.is_contiguous():
        got = f"{describe(tensor)} strides {tensor.stride()}"
        raise ShapeError(f"{what} is {got}, expected contiguous {shape}")


def empty(*shape: int, dtype: torch.dtype) -> Tensor:
    """`torch.empty` on the CPU; a large one asks for huge pages: first touching it is what costs."""
    out = torch.empty(*shape, dtype=dtype)
    if out.nbytes >= HUGE_BYTES:
        extension = _load()[0]
        if extension is not None:
            extension.want_huge_pages(out.data_ptr(), out.nbytes)
    return out


def pointers(tensor: Tensor) -> tuple[int, int, int, int]:
    """(address, rows, cols, row stride) of a matrix."""
    rows, cols = tensor.shape
    return tensor.data_ptr(), rows, cols, tensor.stride()[0]


class Codes:
    """Checked codes: holds the tensors C++ reads, `args` is how they are passed."""

    def __init__(self, values: Tensor | None, indices: Tensor, offsets: Tensor | None, dtype: torch.dtype) -> None:
        shape = indices.shape
        if values is None or offsets is not None or not _are_slots(values, indices, dtype):
            values, indices, offsets = _readable(values, indices, offsets, dtype)
        self.values, self.indices, self.offsets = values, indices, offsets
        self.shape, self.nnz = shape, indices.numel()
        self.n, k = (shape[0], shape[1]) if offsets is None else (offsets.shape[0] - 1, 0)
        self.args = (
            0 if values is None else values.data_ptr(),
            indices.data_ptr(),
            0 if offsets is None else offsets.data_ptr(),
            self.n,
            k,
            self.nnz,
        )


def _are_slots(values: Tensor, indices: Tensor, dtype: torch.dtype) -> bool:
    """Whether codes of fixed width are as C++ reads them, as nearly all are: in the time a small call has."""
    return (
        indices.is_cpu
        and values.is_cpu
        and indices.layout is STRIDED
        and values.layout is STRIDED
        and indices.dtype is torch.int32
        and values.dtype is dtype
        and indices.dim() == 2
        and values.shape == indices.shape
        and indices.is_contiguous()
        and values.is_contiguous()
        and not values.is_neg()
    )


def _readable(
    values: Tensor | None, indices: Tensor, offsets: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """Codes as C++ reads them, or an error that says what they are instead."""
    shape = indices.shape
    if len(shape) != (2 if offsets is None else 1):
        raise ShapeError(f"indices are {describe(indices)}, expected (N, k), or (nnz,) with offsets")
    if values is not None and values.shape != shape:
        raise ShapeError(f"values {describe(values)}, indices {describe(indices)}: expected one shape")
    indices = flat(indices, torch.int32, "indices")
    values = None if values is None else flat(values, dtype, "values")
    offsets = None if offsets is None else flat(offsets, torch.int64, "offsets")
    if offsets is not None and (offsets.dim() != 1 or offsets.shape[0] < 1):
        raise ShapeError(f"codes: offsets are {describe(offsets)}, expected (N+1,)")
    return values, indices, offsets


def call(name: str, *args: Any, codes: Codes | None = None, limit: int = 0) -> None:
    """Run one C++ entry on torch's number of threads. `codes` and `limit` (its latents) word errors."""
    extension, reason = _load()
    if extension is None:
        raise BackendError(f"{name}: {reason}")
    status = getattr(extension, name)(*args, torch.get_num_threads())
    if status is not None:
        code, position, value = status
        _fail(name, code, position, value, codes, limit)


def tell(name: str, *args: Any) -> int:
    """Run one C++ entry that has something to tell of its call (kernels.h says what); 0: nothing."""
    extension, reason = _load()
    if extension is None:
        raise BackendError(f"{name}: {reason}")
    status = getattr(extension, name)(*args, torch.get_num_threads())
    if status is None:
        return 0
    code, position, value = status
    if code:
        _fail(name, code, position, value, None, 0)
    return position


def flush_denormals(flush: bool, threads: int) -> bool:
    """Denormals as zero on the calling thread and `threads` - 1 OpenMP workers; returns the mode before."""
    return ask("flush_denormals", flush, threads)


def ask(name: str, *args: int) -> Any:
    """What C++ answers to a question that is no computation: sizes, the capsule."""
    extension, reason = _load()
    if extension is None:
        raise BackendError(f"{name}: {reason}")
    return getattr(extension, name)(*args)


def _fail(name: str, code: int, position: int, value: int, codes: Codes | None, limit: int) -> NoReturn:
    if code == 1:
        raise MemoryError(f"{name}: no memory for the kernel's scratch space")
    if code == 2:
        raise DtypeError(f"{name}: unknown dtype code {value}")
    if code == 4 and codes is not None:
        at = [position] if codes.offsets is not None else list(divmod(position, codes.shape[1]))
        raise IndexRangeError(f"indices{at} = {value}, expected 0 <= index < {limit}")
    if code == 5 and codes is not None:
        raise IndexRangeError(f"offsets[{position}] = {value}: they must rise from 0 to nnz = {codes.nnz}")
    if code == 6:
        raise IndexRangeError(f"rows[{position}] = {value}, expected 0 <= row < {limit}")
    if code == 7:
        raise IndexRangeError(f"rows[{position}] = {value} is listed twice")
    if code == 8:
        raise IndexRangeError(f"last_step[{position}] = {value}, expected 0 <= last_step <= step")
    if code == 9:
        raise ShapeError(f"prefixes[{position}] = {value}: they must rise strictly, up to at most {limit}")
    raise ShapeError(f"{name}: sizes do not fit together (status {code}, {position}, {value})")


def _check(tensor: Tensor, dtype: torch.dtype, what: str = "matrix") -> None:
    if not tensor.is_cpu or tensor.layout is not torch.strided:
        raise DeviceError(f"{what} is {describe(tensor)} {tensor.layout}, expected a strided cpu tensor")
    if tensor.dtype != dtype:
        raise DtypeError(f"{what} is {describe(tensor)}, expected {_name(dtype)}")


def _name(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")
