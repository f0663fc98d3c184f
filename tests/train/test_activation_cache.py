"""The activation cache: what it holds, that a kill or a full disk loses nothing, and what it refuses."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.runs import Rows
from torch import Tensor

from sae_kernels.adapters import TensorActivations, write_shard
from sae_kernels.cli import main
from sae_kernels.errors import AdapterError, CheckpointError, ConfigError
from sae_kernels.train import activation_cache
from sae_kernels.train.activation_cache import plan, read_manifest, write
from sae_kernels.train.open_tables import ActivationsTable

TABLE = ActivationsTable("tensors", {"path": "x"})
LENGTHS = [10, 0, 25, 7]


def rows(d: int = 4) -> Tensor:
    return torch.randn(42, d, generator=torch.Generator().manual_seed(1))


def source(target: Tensor | None = None) -> Rows:
    return Rows(rows(), target, lengths=LENGTHS, n_blocks=len(LENGTHS))


def contents(directory: Path, name: str = "input") -> Tensor:
    return torch.cat([load_file(path)[name] for path in sorted(directory.glob("shard_*.safetensors"))])


def test_every_row_in_order_and_the_adapter_reads_it(tmp_path: Path) -> None:
    planned = plan(TABLE, source(), tmp_path, 42, shard_bytes=8 * 16)  # 16 rows of 4 bfloat16
    assert "42 tokens × 4 × bfloat16: 336 B to write in shards of 128 B" in str(planned)
    made = write(planned, source())
    assert made.shards == [16, 16, 10]
    torch.testing.assert_close(contents(tmp_path), rows().bfloat16(), rtol=0, atol=0)
    read = TensorActivations(tmp_path)
    assert (read.d_in, read.d_out) == (4, 4)
    assert sum(len(read.block(i)) for i in range(read.n_blocks)) == 42


def test_targets_of_their_own(tmp_path: Path) -> None:
    target = torch.randn(42, 3)
    write(plan(TABLE, source(target), tmp_path, 42, dtype="float32"), source(target))
    torch.testing.assert_close(contents(tmp_path, "target"), target, rtol=0, atol=0)


def test_a_cache_grows_and_stops_where_the_source_does(tmp_path: Path) -> None:
    for tokens in (13, 13, 20, 1000):
        made = write(plan(TABLE, source(), tmp_path, tokens, dtype="float32", shard_bytes=8 * 16), source())
    assert made.complete
    assert made.rows == 42
    torch.testing.assert_close(contents(tmp_path), rows(), rtol=0, atol=0)
    assert not plan(TABLE, source(), tmp_path, 42, dtype="float32", shard_bytes=8 * 16).missing_bytes


def test_a_full_disk_leaves_what_is_complete_and_can_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = write_shard, []

    def full(path: Path, *tensors: Tensor) -> None:
        calls.append(path)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, *tensors)

    monkeypatch.setattr(activation_cache, "write_shard", full)
    planned = plan(TABLE, source(), tmp_path, 42, shard_bytes=8 * 16)
    with pytest.raises(CheckpointError, match=r"shard_00002.*No space left on device; 32 tokens are complete"):
        write(planned, source())
    assert read_manifest(tmp_path).shards == [16, 16]
    assert write(plan(TABLE, source(), tmp_path, 42, shard_bytes=8 * 16), source()).rows == 42
    torch.testing.assert_close(contents(tmp_path), rows().bfloat16(), rtol=0, atol=0)


KILLED = """
import os, signal, sys
sys.path[:0] = {paths!r}
from test_activation_cache import TABLE, plan, source, write
from sae_kernels.train import activation_cache
real = getattr(activation_cache, {function!r})
calls = []
def killed(*args):
    calls.append(args)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args)
setattr(activation_cache, {function!r}, killed)
from pathlib import Path
write(plan(TABLE, source(), Path({directory!r}), 42, shard_bytes=8 * 16), source())
"""


@pytest.mark.parametrize("function", ["write_shard", "_save"])
def test_kill_in_the_middle(tmp_path: Path, function: str) -> None:
    """Before the second shard, and between a shard and its entry in cache.json."""
    here = Path(__file__).parent
    script = KILLED.format(paths=[str(here), str(here.parent)], function=function, directory=str(tmp_path))
    killed = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    (tmp_path / ".shard_00001.safetensors.abc").write_bytes(b"half")
    assert read_manifest(tmp_path).shards == [16]
    assert write(plan(TABLE, source(), tmp_path, 42, shard_bytes=8 * 16), source()).shards == [16, 16, 10]
    torch.testing.assert_close(contents(tmp_path), rows().bfloat16(), rtol=0, atol=0)
    assert not list(tmp_path.glob(".shard*"))


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(plan(TABLE, source(), tmp_path / "a", 20), source())
    with pytest.raises(ConfigError, match=r"something else.*\n.*dtype: 'bfloat16', now 'float32'"):
        plan(TABLE, source(), tmp_path / "a", 20, dtype="float32")
    other = ActivationsTable("tensors", {"path": "y"})
    with pytest.raises(ConfigError, match=r"activations: .*'x'.*now .*'y'"):
        plan(other, source(), tmp_path / "a", 20)
    (tmp_path / "b").mkdir()
    write_shard(tmp_path / "b" / "mine.safetensors", rows())
    with pytest.raises(ConfigError, match=r"holds mine\.safetensors and no cache\.json"):
        plan(TABLE, source(), tmp_path / "b", 20)
    with pytest.raises(ConfigError, match=r"8\.0 PB|8000\.0 TB|are to be written"):
        plan(TABLE, source(), tmp_path / "c", 10**15)
    (tmp_path / "a" / "shard_00000.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"shard_00000\.safetensors is gone"):
        plan(TABLE, source(), tmp_path / "a", 20)
    (tmp_path / "a" / "cache.json").write_text("{")
    with pytest.raises(CheckpointError, match="not a cache's description"):
        plan(TABLE, source(), tmp_path / "a", 20)
    huge = Rows(rows() * 1e6, lengths=LENGTHS, n_blocks=4)
    with pytest.raises(AdapterError, match=r"do not fit float16; choose bfloat16"):
        write(plan(TABLE, huge, tmp_path / "d", 20, dtype="float16"), huge)
    broken = Rows(rows() / 0, lengths=LENGTHS, n_blocks=4)
    with pytest.raises(AdapterError, match="not finite"):
        write(plan(TABLE, broken, tmp_path / "e", 20), broken)


def test_the_command_and_training_on_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shard(tmp_path / "raw" / "0.safetensors", torch.randn(5000, 8))
    config = tmp_path / "run.toml"
    config.write_text(f'[activations]\nadapter = "tensors"\npath = "{tmp_path / "raw"}"\n')
    command = ["cache", str(config), str(tmp_path / "cache"), "--tokens", "4k", "--quiet"]
    assert main([*command, "--dry-run"]) == 0
    assert "4,000 tokens × 8 × bfloat16: 64.0 kB to write" in capsys.readouterr().out
    assert not (tmp_path / "cache" / "cache.json").exists()
    assert main(command) == 0
    assert "4,000 tokens, 64.0 kB in 1 shards" in capsys.readouterr().out
    assert json.loads((tmp_path / "cache" / "cache.json").read_text())["activations"]["adapter"] == "tensors"
    config.write_text(
        f'[activations]\nadapter = "tensors"\npath = "{tmp_path / "cache"}"\n'
        '[coder]\narchitecture = "topk"\nd_sae = 32\nk = 4\n[training]\nsteps = 2\nbatch_size = 64\n'
        f'[output]\ndir = "{tmp_path / "run"}"\n'
    )
    assert main(["train", str(config), "--quiet"]) == 0
    config.write_text("[coder]\n")
    assert main(command) == 1
    assert "no table [activations]" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["cache", str(config), "x", "--tokens", "-3"])
