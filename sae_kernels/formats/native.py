"""The package's own format: a folder with `config.json` and `weights.safetensors`, any architecture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file

from ..architectures import SparseCoder, coder_class
from ..errors import FormatError, SaeKernelsError, describe
from ..files import atomic_directory

NAME = "sae_kernels"
VERSION = 1
CONFIG, WEIGHTS = "config.json", "weights.safetensors"


def matches(path: Path) -> bool:
    """A folder whose config.json says so, or with both our files and a config.json that cannot be read any more."""
    try:
        return json.loads((path / CONFIG).read_text(encoding="utf-8")).get("format") == NAME
    except OSError:
        return False
    except (ValueError, AttributeError):
        return (path / WEIGHTS).is_file()


def save(coder: SparseCoder, path: Path) -> None:
    """Write the folder; one that was there is replaced in one step, or stays if anything fails."""
    if not coder.architecture:
        raise FormatError(
            f"{type(coder).__name__} has no `architecture` name, so a saved file could not be loaded again"
        )
    with atomic_directory(path) as folder:
        config = {
            "format": NAME,
            "version": VERSION,
            "architecture": coder.architecture,
            "config": coder.config.to_dict(),
        }
        if coder.metadata:
            config["metadata"] = coder.metadata
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        tensors = {name: tensor.detach().contiguous() for name, tensor in coder.state_dict().items()}
        try:
            save_file(tensors, folder / WEIGHTS)
        except safetensors.SafetensorError as error:  # its word for a full disk, too
            raise FormatError(f"{path}: the weights could not be written: {error}") from error


def load(path: Path) -> SparseCoder:
    """Read a folder written by `save`, in the dtype it was saved in, on the CPU.

    Raises:
        FormatError: a file missing, cut short, of a newer version, or with tensors that don't fit its configuration.
    """
    config = _read_config(path / CONFIG)
    tensors = read_tensors(path / WEIGHTS)
    try:
        cls = coder_class(config["architecture"])
        with torch.device("meta"):
            coder = cls(cls.Config.build(**config["config"]))
    except SaeKernelsError as error:
        raise FormatError(f"{path / CONFIG}: {error}") from error
    expected = coder.state_dict()
    for name, tensor in expected.items():
        if name not in tensors:
            raise FormatError(f"{path / WEIGHTS}: no tensor {name!r}, expected shape {tuple(tensor.shape)}")
        if tensors[name].shape != tensor.shape:
            found = tuple(tensors[name].shape)
            raise FormatError(f"{path / WEIGHTS}: tensor {name!r} has shape {found}, expected {tuple(tensor.shape)}")
        if not tensors[name].dtype.is_floating_point:
            raise FormatError(
                f"{path / WEIGHTS}: tensor {name!r} is {describe(tensors[name])}, expected a floating dtype"
            )
    for name in tensors:
        if name not in expected:
            raise FormatError(f"{path / WEIGHTS}: tensor {name!r} is none of {cls.__name__}'s: {', '.join(expected)}")
    coder.load_state_dict(tensors, assign=True)
    coder.metadata = config.get("metadata", {})
    return coder


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError(f"{path}: {error}") from error
    if not isinstance(config, dict):
        raise FormatError(f"{path}: holds a {type(config).__name__}, expected a JSON object")
    version = config.get("version")
    if version != VERSION:
        raise FormatError(f"{path}: version {version!r}, expected {VERSION}; a newer sae-kernels may read it")
    for key, kind in (("architecture", str), ("config", dict)):
        if not isinstance(config.get(key), kind):
            raise FormatError(f"{path}: {key!r} is {config.get(key)!r}, expected a {kind.__name__}")
    if not isinstance(config.get("metadata", {}), dict):
        raise FormatError(f"{path}: 'metadata' is {config['metadata']!r}, expected a dict")
    return config


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file; FormatError naming the file when it is missing, cut short or foreign."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping: keys() only)
    except (OSError, safetensors.SafetensorError) as error:
        size = f"{path.stat().st_size} bytes" if path.exists() else "no such file"
        raise FormatError(f"{path} ({size}): not a readable safetensors file: {error}") from error
