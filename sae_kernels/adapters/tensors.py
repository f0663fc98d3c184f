"""Activations on disk: safetensors shards, memory-mapped.

A shard holds `input` (rows, d_in) and, where the target differs from the input, `target` (rows, d_out), of
one dtype.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..errors import AdapterError, DtypeError, FormatError, ShapeError, describe
from ..files import atomic_file
from ._checks import fraction, paths, positive
from ._order import BlockOrder, Split, split_range
from .base import ActivationBatch

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class TensorActivations:
    """An `ActivationSource` over shards; rows are read from the memory map block by block.

    The unit of order is a run of `run_rows` neighbouring rows: with `shuffle`, a block draws its runs from
    all over the data and mixes their rows, at the cost of one short sequential read a run; without, rows come
    as they lie. `split` and `heldout` as in `open_source`; they too count in runs.

    Raises:
        FormatError: a shard is truncated, foreign or unlike the first; names file and tensor.
        AdapterError: there are no shards, or no rows.
    """

    def __init__(
        self,
        path: str | Path | Sequence[str | Path],
        *,
        block_rows: int = 16384,
        run_rows: int = 256,
        split: Split = "all",
        heldout: float = 0.05,
        shuffle: bool = False,
        seed: int = 0,
        epochs: int | None = 1,
    ) -> None:
        positive(block_rows=block_rows, run_rows=run_rows)
        paths("path", path)
        self.files = shard_files(path)
        self._handles: list[Any] = []
        self._n_rows: list[int] = []
        self._shapes: dict[str, tuple[torch.dtype, int]] = {}
        for file in self.files:
            self._add(file)
        if split != "all":  # little data: runs short enough that some can be held out
            run_rows = min(run_rows, max(int(sum(self._n_rows) * fraction(heldout=heldout)), 1))
        self.run_rows = run_rows
        self._first_run = [0, *itertools.accumulate(-(-n // run_rows) for n in self._n_rows)]
        self._runs = split_range(self._first_run[-1], split, heldout)
        self.order = BlockOrder(len(self._runs), max(block_rows // run_rows, 1), shuffle, seed, epochs)
        self.n_blocks = self.order.n_blocks
        self.d_in = self._shapes["input"][1]
        self.d_out = self._shapes.get("target", self._shapes["input"])[1]

    def block(self, index: int) -> ActivationBatch:
        """Rows of block `index`, on the CPU, in the dtype of the shards.

        Raises:
            AdapterError: there is no such block.
        """
        runs = [self._runs[i] for i in self.order.items(index).tolist()]
        input = self._read("input", runs)
        target = self._read("target", runs) if "target" in self._shapes else None
        order = self.order.rows(index, len(input))
        if order is not None:
            input, target = input[order], None if target is None else target[order]
        return ActivationBatch(input, input if target is None else target)

    def _read(self, name: str, runs: list[int]) -> Tensor:
        parts = []
        for run in runs:
            shard = bisect.bisect_right(self._first_run, run) - 1
            start = (run - self._first_run[shard]) * self.run_rows
            stop = min(start + self.run_rows, self._n_rows[shard])
            parts.append(self._handles[shard].get_slice(name)[start:stop])
        return torch.cat(parts)

    def _add(self, file: Path) -> None:
        handle, shapes, n_rows = _open_shard(file)
        if not self._shapes:
            self._shapes = shapes
        if missing := self._shapes.keys() ^ shapes.keys():
            raise FormatError(
                f"{file}: tensors {sorted(shapes)}, expected {sorted(self._shapes)} as in {self.files[0]} "
                f"({', '.join(sorted(missing))} is in one of them only)"
            )
        for name, (dtype, d) in shapes.items():
            if (dtype, d) != self._shapes[name]:
                first_dtype, first_d = self._shapes[name]
                raise FormatError(
                    f"{file}: tensor {name!r} has width {d} and {dtype}, "
                    f"expected {first_d} and {first_dtype} as in {self.files[0]}"
                )
        self._handles.append(handle)
        self._n_rows.append(n_rows)


def shard_files(path: str | Path | Sequence[str | Path]) -> list[Path]:
    """A file, the .safetensors files of a folder in order of name, or each of a list.

    Raises:
        AdapterError: something does not exist, or there are no shards.
    """
    if not isinstance(path, (str, Path)):
        return [file for part in path for file in shard_files(part)] or _no_shards(path)
    path = Path(path)
    if path.is_dir():
        return sorted(path.glob("*.safetensors")) or _no_shards(path)
    return [path] if path.exists() else _no_shards(path)


def write_shard(path: str | Path, input: Tensor, target: Tensor | None = None) -> None:
    """Write one shard. It appears under its name complete or not at all; an existing file is replaced.

    Shapes:
        input: (rows, d_in) float64, float32, bfloat16 or float16
        target: (rows, d_out) of the same dtype; None where it is the input
    Raises:
        ShapeError, DtypeError: tensors that are no shard.
        OSError: the folder can't be written, or the disk is full.
    """
    tensors = {"input": input} if target is None or target is input else {"input": input, "target": target}
    for name, tensor in tensors.items():
        if tensor.ndim != 2 or len(tensor) != len(input):
            raise ShapeError(f"{name} {describe(tensor)}, expected (rows, d), as many rows in each")
        if tensor.dtype != input.dtype or tensor.dtype not in _DTYPES.values():
            raise DtypeError(f"{name} {describe(tensor)}, expected one floating dtype for all tensors")
    # cloned, because safetensors refuses tensors that share memory
    copies = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
    data = safetensors.torch.save(copies)
    with atomic_file(Path(path)) as temporary:
        temporary.write_bytes(data)


def open_source(
    *,
    path: str | Path | list[str],
    split: Split = "train",
    heldout: float = 0.05,
    block_rows: int = 16384,
    run_rows: int = 256,
    seed: int = 0,
    epochs: int | None = None,
) -> TensorActivations:
    """The `[activations]` table of a training configuration with `adapter = "tensors"`.

    path: a shard, a folder of shards, or a list of these
    split: "train" (shuffled), "heldout" or "all" (both in the order on disk)
    heldout: fraction of the rows, from the end, that "train" leaves out
    block_rows: rows read and mixed at a time
    run_rows: neighbouring rows read in one go; fewer mix better, more read faster
    seed: of the order of runs and rows
    epochs: passes over the shards; by default endless for "train", one otherwise
    """
    train = split == "train"
    return TensorActivations(
        path,
        block_rows=block_rows,
        run_rows=run_rows,
        split=split,
        heldout=heldout,
        shuffle=train,
        seed=seed,
        epochs=epochs if train or epochs else 1,
    )


def _open_shard(file: Path) -> tuple[Any, dict[str, tuple[torch.dtype, int]], int]:
    """An open memory map, (dtype, width) by tensor name, and the number of rows."""
    try:
        handle = safetensors.safe_open(file, framework="pt")
    except (safetensors.SafetensorError, OSError) as error:
        raise FormatError(f"{file}: not a complete safetensors file ({error})") from None
    names = set(handle.keys())
    if names not in ({"input"}, {"input", "target"}):
        raise FormatError(f"{file}: tensors {sorted(names)}, expected 'input' and, for a transcoder, 'target'")
    shapes, n_rows = {}, {}
    for name in sorted(names):
        view = handle.get_slice(name)
        shape, dtype = view.get_shape(), view.get_dtype()
        if len(shape) != 2 or shape[1] == 0 or dtype not in _DTYPES:
            raise FormatError(
                f"{file}: tensor {name!r} is {tuple(shape)} {dtype}, expected (rows, d), {'/'.join(_DTYPES)}"
            )
        shapes[name], n_rows[name] = (_DTYPES[dtype], shape[1]), shape[0]
    if len({dtype for dtype, _ in shapes.values()}) > 1 or len(set(n_rows.values())) > 1:
        found = ", ".join(f"{name} ({n_rows[name]}, {d}) {dtype}" for name, (dtype, d) in shapes.items())
        raise FormatError(f"{file}: {found}; expected as many rows and one dtype")
    return handle, shapes, n_rows["input"]


def _no_shards(path: object) -> list[Path]:
    raise AdapterError(f"{path}: no activations, expected a .safetensors file or a folder of them")
