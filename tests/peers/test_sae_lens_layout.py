"""SAELens' W_enc lies in memory by latents while it is patched: nothing but strides tells."""

from __future__ import annotations

import copy
import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.peer import D, data, peer
from support.peer_sae_lens import KINDS, TRAINED, M, made, step_input
from torch import nn

import sae_kernels as sk

pytestmark = pytest.mark.peers
peer("sae_lens", "sae-lens")
ALL = (*KINDS, *TRAINED)


def strides(sae: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: parameter.stride() for name, parameter in sae.named_parameters()}


@pytest.mark.parametrize("kind", ALL)
def test_strides_change_and_nothing_else(kind: str) -> None:
    sae = made(kind)
    sae(data()).sum().backward()
    before, values = strides(sae), copy.deepcopy(sae.state_dict())
    identity = [id(parameter) for parameter in sae.parameters()]
    grad = sae.W_enc.grad.clone()
    handle = sk.patch(sae)
    assert strides(sae) == {**before, "W_enc": (1, D)}
    assert sae.W_enc.grad.stride() == (1, D)
    assert torch.equal(sae.W_enc.grad, grad)
    assert all(torch.equal(value, values[name]) for name, value in sae.state_dict().items())
    sae.W_enc.data[:, 3] = values["W_enc"][:, 3] = 7.0
    handle.undo()
    assert strides(sae) == before
    assert sae.W_enc.grad.stride() == before["W_enc"]
    assert all(torch.equal(value, values[name]) for name, value in sae.state_dict().items())
    assert identity == [id(parameter) for parameter in sae.parameters()]


@pytest.mark.parametrize("kind", ALL)
def test_files_are_the_hosts(kind: str, tmp_path: Path) -> None:
    """safetensors takes no strides."""
    plain = made(kind, dtype="float32")
    mine = copy.deepcopy(plain)
    sk.patch(mine)
    ways = ["save_model"] + ["save_inference_model"] * hasattr(plain, "save_inference_model")
    for way in ways:
        theirs, ours = getattr(plain, way)(tmp_path / f"{way} plain"), getattr(mine, way)(tmp_path / f"{way} patched")
        for their_file, my_file in zip(theirs, ours, strict=True):
            assert Path(my_file).read_bytes() == Path(their_file).read_bytes()
    assert mine.W_enc.stride() == (1, D)
    twin, twins = copy.deepcopy((mine, list(mine.parameters())))
    assert strides(twin) == strides(plain)
    assert all(one is other for one, other in zip(twin.parameters(), twins, strict=True))
    twin.save_model(tmp_path / "twin")
    shares = copy.deepcopy(mine, {id(parameter): parameter for parameter in mine.parameters()})
    assert shares.W_enc is mine.W_enc
    assert mine.W_enc.stride() == (1, D)
    again = type(plain).load_from_disk(tmp_path / "save_model patched")
    torch.testing.assert_close(again(data().float()), plain(data().float()))


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("kind", ["standard", "train topk"])
def test_what_is_loaded_lies_the_same_way(kind: str, assign: bool, tmp_path: Path) -> None:
    other = made(kind, dtype="float32")
    with torch.no_grad():
        other.W_enc.mul_(-1)
    file = other.save_model(tmp_path)[0]
    sae = made(kind, dtype="float32")
    handle = sk.patch(sae)
    sae.load_state_dict(load_file(file), assign=assign)
    assert sae.W_enc.stride() == (1, D)
    torch.testing.assert_close(sae(data().float()), other(data().float()))
    handle.undo()
    assert sae.W_enc.stride() == (M, 1)
    torch.testing.assert_close(sae(data().float()), other(data().float()))


def test_a_weight_of_another_shape_is_not_put_back() -> None:
    sae = made("standard")
    handle = sk.patch(sae)
    wider = torch.randn(D, M + 5, dtype=torch.float64)
    sae.W_enc = nn.Parameter(wider.clone())
    handle.undo()
    assert torch.equal(sae.W_enc, wider)


def test_a_weight_that_was_shared_since_stays_where_it_is() -> None:
    sae = made("standard")
    handle = sk.patch(sae)
    sae.W_dec.data = sae.W_enc.data.mT
    at = sae.W_enc.data_ptr()
    handle.undo()
    assert sae.W_enc.data_ptr() == sae.W_dec.data_ptr() == at


def test_inference_mode_leaves_weights_that_can_be_trained() -> None:
    sae = made("topk")
    with torch.inference_mode(), sk.patch(sae):
        sae(data())
    assert not sae.W_enc.is_inference()
    sae(data().requires_grad_()).sum().backward()


def test_a_patched_sae_can_be_freed() -> None:
    sae = made("train topk")
    kept = weakref.ref(sae)
    handle = sk.patch(sae)
    del sae
    gc.collect()
    assert kept() is None
    handle.undo()


@pytest.mark.parametrize("how", ["tied", "a view", "shared memory"])
def test_weights_that_others_look_at_stay_where_they_are(how: str) -> None:
    sae = made("topk")
    if how == "tied":
        sae.W_dec.data = sae.W_enc.data.mT
    elif how == "a view":
        sae.W_enc.data = torch.stack([sae.W_enc.data, sae.W_enc.data])[0]
    else:
        sae.W_enc.data.share_memory_()
    expected, at = sae(data()), sae.W_enc.data_ptr()
    sk.patch(sae)
    assert sae.W_enc.data_ptr() == at
    torch.testing.assert_close(sae(data()), expected)


@pytest.mark.parametrize("first", [0, 1], ids=["from the start", "after a step"])
@pytest.mark.parametrize("keys", [{}, {"foreach": True}, {"fused": True}], ids=["plain", "foreach", "fused"])
def test_adam_takes_the_same_steps(first: int, keys: dict[str, Any]) -> None:
    """Also where its state was made before, and after the patch is gone. (torch's fused steps go wrong by themselves
    where a weight and its state lie differently.)"""
    saes = made("train topk"), made("train topk")
    optimizers = [torch.optim.Adam(sae.parameters(), lr=0.1, **keys) for sae in saes]
    handle = None
    for step in range(5):
        if step == first:
            handle = sk.patch(saes[1])
            assert saes[1].W_enc.stride() == (1, D)
        if step == 3:
            assert handle is not None
            assert saes[1].W_enc.grad.stride() == (1, D)
            handle.undo()
        for sae, optimizer in zip(saes, optimizers, strict=True):
            optimizer.zero_grad()
            sae.training_forward_pass(step_input(data())).loss.backward()
            optimizer.step()
    for mine, theirs in zip(saes[1].parameters(), saes[0].parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
