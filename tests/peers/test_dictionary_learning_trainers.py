"""dictionary_learning's trainers of the top-k family, patched against themselves."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from support.no_dense import NoDense
from support.peer import D, all_close, data, peer
from support.peer_dictionary_learning import TRAINERS, N, batches, coder, trainer

import sae_kernels as sk
from sae_kernels.errors import BackendError

pytestmark = pytest.mark.peers
peer("dictionary_learning", "dictionary-learning")


def theirs_and_mine(kind: str, run: Any, **keys: Any) -> tuple[Any, Any]:
    """What `run(trainer)` gives for a fresh trainer, plain and patched."""
    plain, patched = trainer(kind, **keys), trainer(kind, **keys)
    with sk.patch(patched):
        return run(plain), run(patched)


@pytest.mark.parametrize("alpha", [1 / 32, 0.0])
@pytest.mark.parametrize("kind", TRAINERS)
def test_ten_steps_of_training(kind: str, alpha: float) -> None:
    """Weights, counters, threshold, logs: the same, with latents that die and some that come back."""
    n_dead, revived = set(), 0

    def run(one: Any) -> list[list[Any]]:
        nonlocal revived
        seen = []
        for step, x in enumerate(batches(N)):
            before = one.num_tokens_since_fired >= one.dead_feature_threshold
            loss = one.update(step, x)
            after = one.num_tokens_since_fired.clone()
            revived += int((before & (after == 0)).any())
            n_dead.add(one.dead_features)
            weights = [parameter.detach().clone() for parameter in one.ae.parameters()]
            logged = [one.effective_l0, one.dead_features, one.pre_norm_auxk_loss]
            numbers = [torch.as_tensor(each).detach().double() for each in (loss, one.ae.threshold, *logged)]
            seen.append([after, *weights, *[number.clone() for number in numbers]])
        return seen

    theirs, mine = theirs_and_mine(kind, run, auxk_alpha=alpha)
    for step, (a, b) in enumerate(zip(mine, theirs, strict=True)):  # AuxK is float32 in the host
        all_close(a, b, [f"step {step}"] * len(a), rtol=1e-4, atol=1e-6)
    if alpha:
        assert max(n_dead) > D // 2, "no dead latents: nothing was tested"
        assert revived, "none came back"


@pytest.mark.parametrize("kind", TRAINERS)
def test_gradients_and_logs_of_a_step(kind: str) -> None:
    """In float64, with AuxK far from small. What AuxK is left with is float32 in the host."""

    def run(one: Any) -> Any:
        one.num_tokens_since_fired[::3] = one.dead_feature_threshold
        with torch.no_grad():
            for name, parameter in one.ae.named_parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
        logged = one.loss(data(), step=5, logging=True)
        loss = one.loss(data(), step=5)
        grads = torch.autograd.grad(loss, list(one.ae.parameters()))
        stats = {key: float(torch.as_tensor(value).detach()) for key, value in one.get_logging_parameters().items()}
        return logged, loss.detach(), grads, stats, one.ae.threshold

    theirs, mine = theirs_and_mine(kind, run, auxk_alpha=3.0)
    assert mine[0]._fields == theirs[0]._fields
    assert mine[0].losses == pytest.approx(theirs[0].losses, rel=1e-6)
    assert list(mine[0].losses) == list(theirs[0].losses)
    all_close([mine[0].f, mine[0].x_hat, mine[4]], [theirs[0].f, theirs[0].x_hat, theirs[4]])
    torch.testing.assert_close(mine[1], theirs[1], rtol=1e-6, atol=1e-6)
    all_close(mine[2], theirs[2], rtol=1e-5, atol=1e-6)
    assert min(float(grad.abs().max()) for grad in theirs[2]) > 1e-3
    assert mine[3] == pytest.approx(theirs[3], rel=1e-5)
    assert mine[3]["dead_features"] > 0


@pytest.mark.parametrize("kind", TRAINERS)
def test_a_step_in_autocast(kind: str) -> None:
    """As the host trains on a GPU."""
    x = data(2000, dtype=torch.float32)

    def run(one: Any) -> Any:
        one.num_tokens_since_fired[::3] = one.dead_feature_threshold
        with torch.autocast("cpu", torch.bfloat16):
            logged = one.loss(x, step=5, logging=True)
            loss = one.loss(x, step=5)
        return logged, torch.autograd.grad(loss, list(one.ae.parameters())), one.ae.threshold, loss

    theirs, mine = theirs_and_mine(kind, run, dtype=torch.float32)
    assert mine[0].losses == pytest.approx(theirs[0].losses, rel=2e-2)
    dtypes = [[each[0].x_hat.dtype, each[0].f.dtype, each[3].dtype] for each in (mine, theirs)]
    assert dtypes[0] == dtypes[1]
    torch.testing.assert_close(mine[2], theirs[2], rtol=2e-2, atol=1e-3)
    for a, b in zip(mine[1], theirs[1], strict=True):
        assert float((a - b).norm()) <= 0.1 * float(b.norm())


@pytest.mark.parametrize("kind", TRAINERS)
def test_a_step_makes_no_dense_tensor(kind: str) -> None:
    n, m = 1024, 9000
    one = trainer(kind, torch.float32, m=m)
    one.num_tokens_since_fired[::3] = one.dead_feature_threshold
    x = torch.randn(n, D)
    with sk.patch(one), sk.use("cpu"), NoDense(n, m):
        one.update(4, x)
    assert one.dead_features > 0
    with pytest.raises(AssertionError, match="a dense tensor has"), NoDense(n, m):
        one.loss(x, step=5)


@pytest.mark.parametrize("kind", TRAINERS)
def test_a_trainers_patch_comes_and_goes(kind: str) -> None:
    one = trainer(kind)
    cls, its_coder = type(one), type(one.ae)
    handle = sk.patch(one)
    assert sk.patch(one) is handle
    assert isinstance(one, cls)
    assert type(one.ae) is not its_coder
    assert one.config["trainer_class"] == cls.__name__
    strides = {name: parameter.stride() for name, parameter in one.ae.named_parameters()}
    again = copy.deepcopy(one)
    assert type(again) is cls
    assert type(again.ae) is its_coder
    torch.testing.assert_close(one.loss(data(), step=5), again.loss(data(), step=5))
    assert type(pickle.loads(pickle.dumps(one.ae))) is its_coder
    one.ae.load_state_dict(again.ae.state_dict())
    assert {name: parameter.stride() for name, parameter in one.ae.named_parameters()} == strides
    handle.undo()
    fresh = trainer(kind).ae
    for name, parameter in one.ae.named_parameters():
        assert parameter.stride() == fresh.get_parameter(name).stride()
        assert torch.equal(parameter, fresh.get_parameter(name))
    assert type(one) is cls
    assert type(one.ae) is its_coder
    with sk.patch(one.ae):
        mine = type(one.ae)
        sk.patch(one).undo()
        assert type(one.ae) is mine, "the coder had been patched by itself"


def test_it_declines_what_it_does_not_know() -> None:
    one = trainer("topk")
    one.ae = coder("batchtopk")
    with pytest.raises(BackendError, match="expected AutoEncoderTopK"):
        sk.patch(one)
    one = trainer("topk")
    one.get_auxiliary_loss = lambda *args: 0.0
    with pytest.raises(BackendError, match="get_auxiliary_loss was replaced on the trainer itself"):
        sk.patch(one)
    assert "dictionary_learning" in str(sk.explain("patch", one))
