"""What patches are made of: a class swapped for one instance, and dense acts that remember their codes."""

from __future__ import annotations

import copy
import pickle

import torch
from torch import nn

import sae_kernels as sk
from bench import cases
from sae_kernels.patches._acts import codes_of, dense_acts
from sae_kernels.patches._later import Later
from sae_kernels.patches._swap import host, swap


def plus_one(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return host(self).forward(self, x) + 1


def test_one_instance_until_undone() -> None:
    mine, other = nn.Linear(3, 4), nn.Linear(3, 4)
    x, before = torch.ones(2, 3), None
    before = mine(x)
    undo = swap(mine, {"forward": plus_one})
    torch.testing.assert_close(mine(x), before + 1)
    assert isinstance(mine, nn.Linear)
    assert repr(mine) == repr(nn.Linear(3, 4))
    assert type(other) is nn.Linear
    again = nn.Linear(3, 4)
    swap(again, {"forward": plus_one})
    assert type(again) is type(mine), "one class for all instances"
    mine.to(torch.float64).to(torch.float32)
    mine.load_state_dict(mine.state_dict())
    torch.testing.assert_close(mine(x), before + 1)
    undo()
    assert type(mine) is nn.Linear
    torch.testing.assert_close(mine(x), before)
    undo()


def test_pickles_and_copies_are_the_hosts() -> None:
    mine = nn.Linear(3, 4)
    undo = swap(mine, {"forward": plus_one})
    for made in (pickle.loads(pickle.dumps(mine)), copy.deepcopy(mine)):
        assert type(made) is nn.Linear
        torch.testing.assert_close(made.weight, mine.weight)
    assert b"sae_kernels" not in pickle.dumps(mine)
    assert type(mine) is not nn.Linear
    undo()


def test_dense_acts_are_the_codes(backend: str) -> None:
    x, W = cases.normal(2, 5, 8, seed=1).requires_grad_(), cases.normal(32, 8, seed=2).requires_grad_()
    theta = torch.zeros(())
    for selection in (sk.TopK(4), sk.TopK(4, relu=False), sk.Threshold(theta), sk.BatchTopK(3)):
        with sk.use(backend):
            codes = sk.encode(x, W, None, selection)
        acts = dense_acts(codes)
        assert acts.shape == (2, 5, 32)
        torch.testing.assert_close(acts, codes.dense())
        assert codes_of(acts) is codes
        weight = cases.normal(2, 5, 32, seed=3)
        mine = torch.autograd.grad((acts * weight).sum(), [x, W], retain_graph=True)
        theirs = torch.autograd.grad((codes.dense() * weight).sum(), [x, W])
        torch.testing.assert_close(mine, theirs)


def test_an_edit_or_another_tensor_loses_the_codes() -> None:
    acts = dense_acts(sk.encode(cases.normal(5, 8), cases.normal(32, 8), None, 4))
    assert codes_of(acts * 1) is None
    assert codes_of(acts.clone()) is None
    assert codes_of(acts.view(1, 5, 32)) is None
    assert codes_of(torch.zeros(3)) is None
    assert codes_of(acts) is not None
    acts[:, 3] = 1.0
    assert codes_of(acts) is None


def test_a_tensor_for_later_is_computed_when_it_is_looked_at() -> None:
    calls = []
    w = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)

    def compute() -> torch.Tensor:
        calls.append(1)
        return w * torch.arange(6.0).view(2, 3)

    later = Later.of(compute, (2, 3), w)
    assert (later.shape, later.dtype, later.ndim, later.size(0), later.numel()) == ((2, 3), torch.float32, 2, 2, 6)
    assert isinstance(later, torch.Tensor)
    assert not calls
    (grad,) = torch.autograd.grad(later.relu().sum() + torch.where(later > 2, later, 0.0).sum(), w)
    assert grad.tolist() == [3 + 3, 5 + 4, 7 + 7], "of the sum, and of what is above 2"
    assert calls == [1], "once"
    dense = compute()
    torch.testing.assert_close(later, dense)
    torch.testing.assert_close(later[1], dense[1])
    assert repr(later) == repr(later.now())
    assert later.requires_grad
    assert later.tolist() == dense.tolist()
    assert torch.equal(torch.from_numpy(later.detach().numpy()), dense.detach())
    torch.testing.assert_close(pickle.loads(pickle.dumps(later.detach())), dense.detach())
    torch.testing.assert_close(later @ torch.ones(3), dense @ torch.ones(3))
    other = Later.of(compute, (2, 3), w)
    torch.testing.assert_close(torch.stack([other, dense]), torch.stack([dense, dense]))
    with torch.no_grad():
        still = Later.of(compute, (2, 3), w)
    assert not still.requires_grad, "recorded as it would have been when it was asked for"
    free = Later.of(lambda: torch.zeros(2), (2,), w)
    free[0] = 5.0
    free.add_(1)
    assert free.tolist() == [6.0, 1.0]
