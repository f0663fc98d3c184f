from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sae_kernels.adapters import ModuleActivations
from sae_kernels.adapters.torch_module import open_source
from sae_kernels.errors import AdapterError, ArgumentError, DtypeError, ShapeError, UnknownNameError


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.drop, self.down = nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)
        self.table = nn.Embedding(5, 2)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        self.table(torch.zeros(2, dtype=torch.int64))
        return self.down(self.drop(self.up(x * scale)))


@pytest.fixture
def mlp() -> Mlp:
    torch.manual_seed(0)
    return Mlp()


@pytest.fixture
def batches() -> list[Tensor]:
    return list(torch.randn(20, 2, 6, 4, generator=torch.Generator().manual_seed(1)))


def factory() -> tuple[nn.Module, list[Tensor]]:
    torch.manual_seed(0)
    return Mlp(), list(torch.randn(20, 2, 6, 4, generator=torch.Generator().manual_seed(1)))


def test_input_and_target(mlp: Mlp, batches: list[Tensor]) -> None:
    source = ModuleActivations(mlp, batches, "up:in", "down")
    assert (source.d_in, source.d_out, source.n_blocks) == (4, 3, 20)
    block = source.block(7)
    assert torch.equal(block.input, batches[7].view(12, 4))
    assert torch.equal(block.target, mlp.eval()(batches[7]).view(12, 3))
    assert not block.target.requires_grad


def test_an_autoencoder_has_one_tensor(mlp: Mlp, batches: list[Tensor]) -> None:
    block = ModuleActivations(mlp, batches, "up", shuffle=True).block(0)
    assert block.target is block.input
    assert block.input.shape == (12, 8)


def test_modes_and_hooks_are_left_as_found(mlp: Mlp, batches: list[Tensor]) -> None:
    mlp.train().down.eval()
    ModuleActivations(mlp, batches, "down").block(0)
    assert (mlp.training, mlp.drop.training, mlp.down.training) == (True, True, False)
    assert not mlp.down._forward_hooks


@pytest.mark.parametrize("batch", [torch.ones(3, 4), (torch.ones(3, 4), 1.0), {"x": torch.ones(3, 4), "scale": 1.0}])
def test_kinds_of_batch(mlp: Mlp, batch: Any) -> None:
    assert torch.equal(ModuleActivations(mlp, [batch], "up:in").block(0).input, torch.ones(3, 4))


def test_blocks_are_the_same_bits_whenever_asked(mlp: Mlp, batches: list[Tensor]) -> None:
    one = ModuleActivations(mlp, batches, "down", shuffle=True, seed=3, epochs=None)
    two = ModuleActivations(mlp, batches, "down", shuffle=True, seed=3, epochs=None)
    for index in (0, 41, 5):
        assert torch.equal(one.block(index).input, two.block(index).input)
    assert torch.equal(one.block(0).input, two.block(0).input)
    assert one.n_blocks is None


def test_an_epoch_covers_everything_and_the_next_is_shuffled_anew(mlp: Mlp, batches: list[Tensor]) -> None:
    source = ModuleActivations(mlp, batches, "up:in", shuffle=True, epochs=2)
    assert source.n_blocks == 40
    epochs = [torch.cat([source.block(20 * e + i).input for i in range(20)]) for e in range(2)]
    everything = torch.cat(batches).view(-1, 4)
    for epoch in epochs:
        assert sorted(epoch.tolist()) == sorted(everything.tolist())
    assert not torch.equal(*epochs)


@pytest.mark.parametrize("index", [-1, 20])
def test_no_such_block(mlp: Mlp, batches: list[Tensor], index: int) -> None:
    with pytest.raises(AdapterError, match=f"block {index}: expected 0 <= block < 20"):
        ModuleActivations(mlp, batches, "up").block(index)


def test_bad_sources(mlp: Mlp, batches: list[Tensor]) -> None:
    with pytest.raises(AdapterError, match="expected a sequence"):
        ModuleActivations(mlp, iter(batches), "up")  # type: ignore[arg-type]
    with pytest.raises(AdapterError, match="empty"):
        ModuleActivations(mlp, [], "up")
    with pytest.raises(UnknownNameError, match="did you mean 'down'"):
        ModuleActivations(mlp, batches, "dwn")
    with pytest.raises(AdapterError, match=r"'table:in': \(2,\) int64 cpu, expected floating"):
        ModuleActivations(mlp, batches, "table:in")
    with pytest.raises(ShapeError, match=r"input \(12, 4\).*target \(2, 2\)"):
        ModuleActivations(mlp, batches, "up:in", "table")
    with pytest.raises(AdapterError, match="expected a tensor, a tuple or a mapping"):
        ModuleActivations(mlp, ["text"], "up")
    with pytest.raises(AdapterError, match="expected a torch"):
        ModuleActivations(torch.relu, batches, "up")  # type: ignore[arg-type]


def test_width_that_changes(batches: list[Tensor]) -> None:
    source = ModuleActivations(nn.ReLU(), [torch.ones(2, 3), torch.ones(2, 4)], ":in")
    with pytest.raises(AdapterError, match="expected widths 3 and 3"):
        source.block(1)


def test_dtypes_that_differ() -> None:
    class Cast(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.double()

    with pytest.raises(DtypeError, match="expected one floating dtype"):
        ModuleActivations(Cast(), [torch.ones(2, 3)], ":in", ":out")


def test_open_source_splits_without_overlap() -> None:
    name = f"{__name__}:factory"
    train = open_source(factory=name, hook_in="up:in", epochs=1)
    heldout = open_source(factory=name, hook_in="up:in", split="heldout")
    rows = [{tuple(r) for i in range(s.n_blocks or 0) for r in s.block(i).input.tolist()} for s in (train, heldout)]
    assert [len(r) for r in rows] == [19 * 12, 12]
    assert not rows[0] & rows[1]
    assert open_source(factory=factory, hook_in="up").n_blocks is None


@pytest.mark.parametrize("name", ["no_such_package:f", "math", "math:no_such"])
def test_bad_factory(name: str) -> None:
    with pytest.raises(ArgumentError, match="factory = "):
        open_source(factory=name, hook_in="up")


def test_bad_split() -> None:
    with pytest.raises(ArgumentError, match="did you mean 'heldout'"):
        open_source(factory=factory, hook_in="up", split="held_out")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"heldout = 1\.5"):
        open_source(factory=factory, hook_in="up", heldout=1.5)
