"""The tensors of a file, taken one by one with the shape they must have, and made into a coder."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from ..architectures import SparseCoder, coder_class
from ..errors import FormatError, SaeKernelsError, describe


class Weights:
    """Tensors by name. What is missing, mis-shaped, of no floating dtype or left over at the end is a FormatError that
    names file, tensor, found and expected."""

    def __init__(self, file: Path, tensors: Mapping[str, Tensor]) -> None:
        self.file = file
        self._tensors = dict(tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def sizes(self, name: str, rank: int) -> tuple[int, ...]:
        """The shape of a tensor, which must have so many dimensions: where sizes come from if no configuration has
        them."""
        tensor = self._peek(name, f"a tensor of {rank} dimensions")
        if tensor.dim() != rank:
            raise FormatError(f"{self.file}: tensor {name!r} is {describe(tensor)}, expected {rank} dimensions")
        return tuple(tensor.shape)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return tuple(self._peek(name, "a tensor").shape)

    def take(self, name: str, *shape: int) -> Tensor:
        """A floating tensor of this shape."""
        tensor = self._peek(name, f"shape {shape}")
        if tuple(tensor.shape) != shape:
            raise FormatError(f"{self.file}: tensor {name!r} has shape {tuple(tensor.shape)}, expected {shape}")
        if not tensor.dtype.is_floating_point or tensor.itemsize < 2:
            raise FormatError(
                f"{self.file}: tensor {name!r} is {describe(tensor)}, expected float32, float64, float16 or bfloat16"
            )
        return self._tensors.pop(name)

    def take_rows(self, name: str, d_in: int, d_sae: int) -> Tensor:
        """A tensor (d_in, d_sae) as (d_sae, d_in): one row a latent, next to each other in memory, as the kernels read
        fastest."""
        return self.take(name, d_in, d_sae).mT.contiguous()

    def take_integer(self, name: str) -> int:
        """A whole number, stored as a 0-d tensor of any dtype or as a Python number."""
        value = self._tensors.pop(name, None)
        if isinstance(value, Tensor) and value.numel() == 1 and value.dim() == 0:
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value):
            raise FormatError(f"{self.file}: {name!r} is {value!r}, expected a whole number")
        return int(value)

    def take_integers(self, name: str) -> list[int]:
        """Whole numbers, stored as a 1-d integer tensor."""
        tensor = self._peek(name, "integers in one dimension")
        if tensor.dim() != 1 or tensor.dtype.is_floating_point or tensor.dtype.is_complex:
            raise FormatError(f"{self.file}: tensor {name!r} is {describe(tensor)}, expected (n,) integers")
        return self._tensors.pop(name).tolist()

    def drop(self, *names: str) -> None:
        """Leave out what only training needs."""
        for name in names:
            self._tensors.pop(name, None)

    def done(self, what: str) -> None:
        """FormatError if anything is left: it would be lost."""
        for name, tensor in self._tensors.items():
            shown = describe(tensor) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise FormatError(f"{self.file}: tensor {name!r}, {shown}, is none that {what} has")

    def _peek(self, name: str, expected: str) -> Tensor:
        if name not in self._tensors:
            held = ", ".join(self._tensors) or "nothing"
            raise FormatError(f"{self.file}: no tensor {name!r}, expected {expected}; it holds {held}")
        tensor = self._tensors[name]
        if not isinstance(tensor, Tensor):
            raise FormatError(f"{self.file}: {name!r} is a {type(tensor).__name__}, expected a tensor")
        return tensor


def assembled(file: Path, architecture: str, config: dict[str, Any], tensors: dict[str, Tensor]) -> SparseCoder:
    """A coder around these tensors, which are not copied; they share one dtype. Buffers that the host has no word for
    start as in a new coder."""
    try:
        cls = coder_class(architecture)
        with torch.device("meta"):
            coder = cls(cls.Config.build(**config))
    except SaeKernelsError as error:
        raise FormatError(f"{file}: {error}") from error
    dtypes = {tensor.dtype for name, tensor in tensors.items() if name.rpartition(".")[2] not in KEPT_WIDE}
    if len(dtypes) > 1:
        shown = ", ".join(f"{name} {describe(tensor)}" for name, tensor in tensors.items())
        raise FormatError(f"{file}: tensors of several dtypes, expected one: {shown}")
    if "log_theta" in tensors and bool(tensors["log_theta"].isnan().any()):
        raise FormatError(f"{file}: a threshold is NaN, expected a number")
    for name, start in BUFFERS.items():
        if name in dict(coder.named_buffers()):
            tensors.setdefault(name, torch.full(coder.get_buffer(name).shape, start))
    try:
        coder.load_state_dict(tensors, assign=True)
    except RuntimeError as error:  # a reader that made the wrong tensors
        raise FormatError(f"{file}: {error}") from error
    for parameter in coder.parameters():
        parameter.requires_grad_(True)
    return coder


def behind_norm(file: Path, coder: SparseCoder, norm: str) -> SparseCoder:
    """The coder behind a normalisation of each token, `norm` as `token_norm` names it; it is not copied."""
    own = coder.config.to_dict()
    sizes = {name: own.pop(name) for name in ("d_in", "d_sae", "b_dec_init")}
    config = {**sizes, "coder": coder.architecture, "coder_config": own, "norm": norm}
    tensors = {f"coder.{name}": tensor for name, tensor in coder.state_dict().items()}
    outer = assembled(file, "token_norm", config, tensors)
    outer.metadata = coder.metadata
    return outer


BUFFERS = {"threshold": -1.0, "threshold_batches": 0.0, "input_rms": 1.0}
KEPT_WIDE = (*BUFFERS, "log_theta")  # float32 whatever the weights are


def log_of(theta: Tensor) -> Tensor:
    """log θ in float32 (float64 for float64), such that e^{log θ} is θ or a little above: a pre-act that is θ itself
    stays out. θ ≤ 0 becomes 0, log θ = −∞: for hosts that have a ReLU before the threshold, where it is the same."""
    dtype = torch.float64 if theta.dtype == torch.float64 else torch.float32
    theta = theta.to(dtype).clamp_min(0)
    log = theta.double().log().to(dtype)
    for _ in range(4):
        log = torch.where(log.exp() < theta, torch.nextafter(log, torch.full_like(log, torch.inf)), log)
    return log


def read_safetensors(path: Path) -> Weights:
    """A safetensors file, mapped into memory: pages are read when they are looked at."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return Weights(path, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise FormatError(f"{path} ({_size(path)}): not a readable safetensors file: {error}") from error


def read_npz(path: Path) -> Weights:
    """A numpy archive of plain arrays; one with pickled objects is refused unread."""
    try:
        with path.open("rb") as file, numpy.load(file, allow_pickle=False) as archive:
            return Weights(path, {name: torch.from_numpy(archive[name]) for name in archive.files})
    except (OSError, ValueError, TypeError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise FormatError(f"{path} ({_size(path)}): not a readable .npz file of plain arrays: {error}") from error


def read_torch(path: Path) -> dict[str, Any]:
    """A dict that torch.save wrote, with tensors and plain values alone: what would run code is refused."""
    try:
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except Exception as error:  # torch raises whatever its unpickler met
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FormatError(f"{path} ({_size(path)}): not a readable file of tensors alone: {first}") from error
    if not isinstance(held, dict) or not all(isinstance(name, str) for name in held):
        raise FormatError(f"{path}: holds a {type(held).__name__}, expected a dict of tensors by name")
    return held


def write_safetensors(tensors: Mapping[str, Tensor], path: Path, shown: Path) -> None:
    """Write tensors, made contiguous; `shown` is the name errors speak of."""
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    except safetensors.SafetensorError as error:  # its word for a full disk, too
        raise FormatError(f"{shown}: the weights could not be written: {error}") from error


def _is_zip(path: Path) -> bool:
    return path.is_file() and zipfile.is_zipfile(path)


def _size(path: Path) -> str:
    return f"{path.stat().st_size} bytes" if path.is_file() else "no such file"
