from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sae_kernels.adapters import TensorActivations, write_shard
from sae_kernels.adapters.tensors import open_source
from sae_kernels.errors import AdapterError, ArgumentError, DtypeError, FormatError, ShapeError


def numbered(start: int, rows: int, d: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    """Row r is (r, r, r): shows where a row came from."""
    return torch.arange(start, start + rows, dtype=dtype)[:, None].expand(-1, d)


def all_rows(source: TensorActivations) -> Tensor:
    return torch.cat([source.block(i).input for i in range(source.n_blocks or 0)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_shard(tmp_path / "a.safetensors", numbered(0, 100), numbered(1000, 100, d=5))
    write_shard(tmp_path / "b.safetensors", numbered(0, 0), numbered(0, 0, d=5))
    write_shard(tmp_path / "c.safetensors", numbered(100, 37), numbered(1100, 37, d=5))
    (tmp_path / "notes.txt").write_text("not a shard")
    return tmp_path


def test_reads_shards_in_order(folder: Path) -> None:
    source = TensorActivations(folder, block_rows=20, run_rows=10)
    assert (source.d_in, source.d_out, source.n_blocks) == (3, 5, 7)
    assert torch.equal(all_rows(source), numbered(0, 137))
    block = source.block(3)
    assert torch.equal(block.target[:, 0], block.input[:, 0] + 1000)


def test_shuffled_blocks_keep_pairs_cover_everything_and_repeat(folder: Path) -> None:
    options: dict[str, Any] = {"block_rows": 20, "run_rows": 4, "shuffle": True, "seed": 5, "epochs": 2}
    one, two = TensorActivations(folder, **options), TensorActivations(folder, **options)
    n = (one.n_blocks or 0) // 2
    epochs = [torch.cat([one.block(e * n + i).input[:, 0] for i in range(n)]) for e in range(2)]
    for epoch in epochs:
        assert torch.equal(epoch.sort().values, torch.arange(137.0))
    assert not torch.equal(*epochs)
    for index in (9, 0, 3):
        block, again = one.block(index), two.block(index)
        assert torch.equal(block.target[:, 0], block.input[:, 0] + 1000)
        assert torch.equal(block.input, again.input)
    other = TensorActivations(folder, **{**options, "seed": 6})
    assert not torch.equal(one.block(0).input, other.block(0).input)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtype_and_bits_are_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    rows = torch.tensor([[1.1, float("nan")], [float("inf"), -0.0]], dtype=dtype)
    write_shard(tmp_path / "x.safetensors", rows.mT)
    block = TensorActivations(tmp_path / "x.safetensors").block(0)
    assert block.target is block.input
    assert block.input.dtype == dtype
    assert torch.equal(block.input.view(torch.uint8), rows.mT.contiguous().view(torch.uint8))


def test_blocks_are_copies(folder: Path) -> None:
    source = TensorActivations(folder, block_rows=10, run_rows=10)
    source.block(0).input.zero_()
    assert torch.equal(source.block(0).input, numbered(0, 10))


def test_list_of_files(folder: Path) -> None:
    files = [folder / "c.safetensors", folder / "a.safetensors"]
    assert all_rows(TensorActivations(files))[0, 0] == 100


@pytest.mark.parametrize("n", [2, 3, 137, 1000])
def test_splits_cover_everything_without_overlap(tmp_path: Path, n: int) -> None:
    write_shard(tmp_path / "x.safetensors", numbered(0, n))
    train = all_rows(open_source(path=str(tmp_path), epochs=1))[:, 0]
    heldout = all_rows(open_source(path=str(tmp_path), split="heldout"))[:, 0]
    assert len(heldout) >= 1
    assert torch.equal(torch.cat([train.sort().values, heldout]), torch.arange(float(n)))
    assert open_source(path=str(tmp_path)).n_blocks is None


# Files that are no shards


def foreign(path: Path, **tensors: Tensor) -> Path:
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("keep", [0, 4, 8, 40, -1])
def test_truncated(tmp_path: Path, keep: int) -> None:
    write_shard(path := tmp_path / "x.safetensors", numbered(0, 10))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FormatError, match=r"x\.safetensors: not a complete safetensors file"):
        TensorActivations(path)


def test_not_safetensors(tmp_path: Path) -> None:
    torch.save({"input": torch.ones(2, 2)}, path := tmp_path / "x.safetensors")
    with pytest.raises(FormatError, match="not a complete safetensors file"):
        TensorActivations(path)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"weight": torch.ones(2, 2)}, r"tensors \['weight'\], expected 'input'"),
        ({"input": torch.ones(2, 2), "targets": torch.ones(2, 2)}, r"\['input', 'targets'\], expected"),
        ({"input": torch.ones(2, 2, 2)}, r"'input' is \(2, 2, 2\) F32, expected \(rows, d\)"),
        ({"input": torch.ones(2, 2, dtype=torch.int64)}, r"'input' is \(2, 2\) I64"),
        ({"input": torch.ones(2, 0)}, r"'input' is \(2, 0\) F32"),
        ({"input": torch.ones(2, 2), "target": torch.ones(3, 2)}, "expected as many rows"),
        ({"input": torch.ones(2, 2), "target": torch.ones(2, 2).half()}, "one dtype"),
    ],
)
def test_foreign(tmp_path: Path, tensors: dict[str, Tensor], words: str) -> None:
    with pytest.raises(FormatError, match=f"x.safetensors: .*{words}"):
        TensorActivations(foreign(tmp_path / "x.safetensors", **tensors))


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (
            {"input": torch.ones(2, 4)},
            "'input' has width 4 and torch.float32, expected 3 and torch.float32 as in .*a.saf",
        ),
        ({"input": torch.ones(2, 3).half()}, "'input' has width 3 and torch.float16"),
        ({"input": torch.ones(2, 3), "target": torch.ones(2, 3)}, r"target is in one of them only"),
    ],
)
def test_shards_that_disagree(tmp_path: Path, tensors: dict[str, Tensor], words: str) -> None:
    write_shard(tmp_path / "a.safetensors", numbered(0, 4))
    foreign(tmp_path / "b.safetensors", **tensors)
    with pytest.raises(FormatError, match=f"b.safetensors: .*{words}"):
        TensorActivations(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"expected a \.safetensors file or a folder"):
        TensorActivations(tmp_path)
    with pytest.raises(AdapterError, match=r"missing.*expected a \.safetensors file"):
        TensorActivations([tmp_path / "missing"])
    write_shard(tmp_path / "x.safetensors", numbered(0, 0))
    with pytest.raises(AdapterError, match="empty"):
        TensorActivations(tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"block_rows": 0}, "block_rows = 0"),
        ({"run_rows": 1.5}, "run_rows = 1.5"),
        ({"epochs": True}, "epochs = True"),
        ({"path": 3}, "path = 3, expected a path or a list of paths"),
        ({"path": []}, r"path = \[\]"),
        ({"heldout": "half"}, "heldout = 'half'"),
    ],
)
def test_bad_options(folder: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        open_source(**{"path": str(folder), **options})


# Writing


@pytest.mark.parametrize(
    ("input", "target", "error"),
    [
        (torch.ones(3), None, ShapeError),
        (torch.ones(3, 2), torch.ones(2, 2), ShapeError),
        (torch.ones(3, 2), torch.ones(3), ShapeError),
        (torch.ones(3, 2), torch.ones(3, 2).half(), DtypeError),
        (torch.ones(3, 2, dtype=torch.int32), None, DtypeError),
    ],
)
def test_refuses_tensors_that_are_no_shard(tmp_path: Path, input: Tensor, target: Tensor, error: type) -> None:
    with pytest.raises(error, match="expected"):
        write_shard(tmp_path / "x.safetensors", input, target)
    assert not list(tmp_path.iterdir())


def test_writes_views_of_one_memory(tmp_path: Path) -> None:
    both = numbered(0, 4, d=6).contiguous().requires_grad_()
    write_shard(tmp_path / "x.safetensors", both[:, :4], both[:, 2:])
    block = TensorActivations(tmp_path).block(0)
    assert (block.input.shape, block.target.shape) == ((4, 4), (4, 4))


def test_a_failed_write_leaves_the_old_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shard(path := tmp_path / "x.safetensors", numbered(0, 4))
    old = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_shard(path, numbered(0, 8))
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_missing_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.safetensors"
    write_shard(path, numbered(0, 4))
    assert len(TensorActivations(path, shuffle=False).block(0)) == 4
