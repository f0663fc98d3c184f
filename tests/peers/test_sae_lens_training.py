"""SAELens' training passes and its trainer, patched against themselves."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from support.no_dense import NoDense
from support.peer import all_close, data, peer, plain_and_patched
from support.peer_sae_lens import PENALISED, TOP_K, TRAINED, M, N, made, own_trainer, step_input
from torch import Tensor

import sae_kernels as sk
from sae_kernels.patches import _sae_lens_penalised as penalised

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning"),  # of the host's own sparse acts
]
peer("sae_lens", "sae-lens")
DEAD = {"none": None, "some": torch.arange(M) % 3 == 0, "few": torch.arange(M) < 2}


@pytest.fixture(params=["few", "many"])
def active(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether an SAE with a penalty is taken for one with few active latents, or with many."""
    monkeypatch.setattr(penalised, "ASKED", 4)
    monkeypatch.setattr(penalised, "FULL", {"few": 1.1, "many": 0.0}[request.param])


def compare_passes(kind: str, dead: Tensor | None, wants_x: bool, dtype: str = "float64") -> None:
    """Fields, losses, metrics, buffers, gradients."""

    def run(patched: bool) -> Any:
        sae = made(kind, dtype)
        handle = sk.patch(sae) if patched else None
        x = data().requires_grad_(wants_x)
        output = sae.training_forward_pass(step_input(x, dead))
        inputs = [*([x] if wants_x else []), *sae.parameters()]
        grads = torch.autograd.grad(output.loss, inputs, allow_unused=True)
        fields = [getattr(output, name) for name in ("loss", "sae_out", "feature_acts", "hidden_pre", "sae_in")]
        if handle:
            handle.undo()
        return output, grads, fields, dict(sae.named_buffers())

    mine, theirs = run(True), run(False)
    assert isinstance(mine[0], type(theirs[0]))
    assert list(mine[0].losses) == list(theirs[0].losses)
    assert mine[0].metrics.keys() == theirs[0].metrics.keys()
    all_close(list(mine[0].losses.values()), list(theirs[0].losses.values()), list(theirs[0].losses))
    all_close(mine[2], theirs[2])
    for a, b in zip(mine[1], theirs[1], strict=True):
        if a is None or b is None:  # not reached: no gradient, or one of zeros
            assert all(grad is None or not grad.any() for grad in (a, b))
        else:
            torch.testing.assert_close(a, b)
    torch.testing.assert_close(mine[3], theirs[3])


@pytest.mark.parametrize("dead", DEAD)
@pytest.mark.parametrize("kind", TOP_K)
def test_the_training_pass_of_the_top_k_family(kind: str, dead: str) -> None:
    compare_passes(kind, DEAD[dead], wants_x=True)


@pytest.mark.usefixtures("active")
@pytest.mark.parametrize("wants_x", [False, True], ids=["weights", "x too"])
@pytest.mark.parametrize("dead", ["none", "some"])
@pytest.mark.parametrize("kind", PENALISED)
def test_the_training_pass_with_a_penalty(kind: str, dead: str, wants_x: bool) -> None:
    """Without a gradient for x that of b_dec takes another way."""
    compare_passes(kind, DEAD[dead], wants_x)


@pytest.mark.usefixtures("active")
@pytest.mark.parametrize("kind", ["train standard", "train gated", "train jumprelu tanh"])
def test_chunks_of_latents(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from sae_kernels.patches import _pairs

    monkeypatch.setattr(_pairs, "CHUNK", 7 * N)
    compare_passes(kind, DEAD["some"], wants_x=True)


@pytest.mark.parametrize("kind", [*TOP_K, "train standard", "train gated", "train jumprelu"])
def test_somebody_listens(kind: str) -> None:
    """What a hook makes of acts is in the loss."""
    sae = made(kind)
    sae.hook_sae_acts_post.add_hook(lambda tensor, hook: 1.5 * tensor)
    theirs, mine = plain_and_patched(sae, lambda: sae.training_forward_pass(step_input(data())).loss)
    torch.testing.assert_close(mine, theirs)
    sae.hook_sae_acts_post.remove_hooks()
    sae.hook_sae_input.add_hook(lambda tensor, hook: 1.5 * tensor)

    def run() -> list[Tensor]:
        loss = sae.training_forward_pass(step_input(data())).loss
        return [loss, torch.autograd.grad(loss, sae.b_dec)[0]]

    theirs, mine = plain_and_patched(sae, run)
    all_close(mine, theirs)


@pytest.mark.usefixtures("active")
@pytest.mark.parametrize("kind", ["train topk", "train topk plain", "train batchtopk", *PENALISED])
def test_acts_and_pre_acts_have_their_gradients(kind: str) -> None:
    found = []
    for patched in (True, False):
        sae = made(kind)
        handle = sk.patch(sae) if patched else None
        out = sae.training_forward_pass(step_input(data()))
        weight = torch.randn(N, M, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        (out.loss + (out.feature_acts * weight).sum() + (out.hidden_pre * weight).square().sum()).backward()
        found.append([torch.zeros(()) if p.grad is None else p.grad for p in sae.parameters()])
        if handle:
            handle.undo()
    all_close(*found)


@pytest.mark.usefixtures("active")
@pytest.mark.parametrize("kind", ["train topk", "train standard", "train gated", "train jumprelu"])
def test_lower_precision(kind: str) -> None:
    """bfloat16 weights and autocast: gradients no further from the exact ones than the host's."""
    exact = made(kind)
    exact.load_state_dict({key: value.double() for key, value in made(kind, "bfloat16").state_dict().items()})
    x = data(2000, dtype=torch.bfloat16)  # many: what lies near a threshold is a matter of luck in 16 bits
    names = [name for name, _ in exact.named_parameters()]
    loss = exact.training_forward_pass(step_input(x.double())).loss
    truth = torch.autograd.grad(loss, list(exact.parameters()))
    for autocast in (False, True):
        sae = made(kind, "float32" if autocast else "bfloat16")
        sae.load_state_dict(exact.state_dict())
        given = x.float() if autocast else x

        def run(sae: Any = sae, given: Tensor = given, autocast: bool = autocast) -> Any:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                out = sae.training_forward_pass(step_input(given))
            return out, torch.autograd.grad(out.loss, list(sae.parameters()))

        (out, theirs), (my_out, mine) = plain_and_patched(sae, run)
        assert {k: v.dtype for k, v in my_out.losses.items()} == {k: v.dtype for k, v in out.losses.items()}
        for field in ("sae_out", "feature_acts", "hidden_pre"):
            given_dtype = getattr(out, field).dtype
            assert getattr(my_out, field).dtype == (+getattr(my_out, field)).dtype == given_dtype, field
        for name, a, b, c in zip(names, mine, theirs, truth, strict=True):
            assert a.dtype == b.dtype
            far = [float((each.double() - c).norm() / c.norm()) for each in (a, b)]
            assert far[0] <= 1.5 * far[1] + 1e-3, f"{name}: {far[0]:.2e} off, the host {far[1]:.2e}"


def test_sparse_activations_are_torchs_where_they_were_asked_for() -> None:
    sae = made("train topk plain", "float32", use_sparse_activations=True)
    given = step_input(data(dtype=torch.float32))
    theirs, mine = plain_and_patched(sae, lambda: sae.training_forward_pass(given))
    assert mine.feature_acts.is_sparse
    torch.testing.assert_close(mine.feature_acts.to_dense(), theirs.feature_acts.to_dense())
    torch.testing.assert_close(mine.loss, theirs.loss)


@pytest.mark.usefixtures("active")
@pytest.mark.parametrize("kind", ["train topk", "train batchtopk", "train matryoshka", *PENALISED])
def test_saelens_own_trainer(kind: str) -> None:
    """Its steps, with what it counts of the acts."""
    sae = made(kind)
    patched = copy.deepcopy(sae)
    sk.patch(patched)
    trainers = [own_trainer(each, N, **{"lr_warm_up_steps": 0}) for each in (patched, sae)]
    for trainer in trainers:
        trainer.n_forward_passes_since_fired[::5] = 2000.0  # dead, but for those that fire
        for i in range(3):
            output = trainer.step(data() * (1 + i))
        trainer.l0 = output.feature_acts.bool().float().sum(-1).to_dense().mean()  # as its logs have it
    mine, theirs = trainers
    torch.testing.assert_close(mine.act_freq_scores, theirs.act_freq_scores)
    torch.testing.assert_close(mine.n_forward_passes_since_fired, theirs.n_forward_passes_since_fired)
    torch.testing.assert_close(mine.l0, theirs.l0)
    for name, parameter in theirs.sae.named_parameters():
        torch.testing.assert_close(mine.sae.get_parameter(name), parameter, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", ["train topk", "train batchtopk", "train standard", "train gated", "train jumprelu"])
@pytest.mark.usefixtures("active")
def test_its_step_makes_nothing_dense(kind: str) -> None:
    n, d_sae = 1024, 8192
    sae = made(kind, dtype="float32", d_sae=d_sae)
    sk.patch(sae)
    trainer = own_trainer(sae, n)
    with sk.use("cpu"), NoDense(n, d_sae) as watched:
        output = trainer.step(data(n, dtype=torch.float32))
        output.feature_acts.bool().float().sum(-1)
    assert watched.seen > 0


@pytest.mark.usefixtures("active")
@pytest.mark.parametrize("kind", ["train topk", "train standard"])
def test_counting_what_fired_leaves_acts_unmade(kind: str) -> None:
    sae = made(kind)
    sk.patch(sae)

    def acts() -> Any:
        return sae.training_forward_pass(step_input(data())).feature_acts

    made_later = acts()
    fired = made_later.bool().float()
    counts = [fired.sum(-2), fired.sum(0), fired.sum(-1)]
    assert made_later._made is None
    assert fired._made is None
    active = (made_later != 0).float()
    all_close(counts, [active.sum(0), active.sum(0), active.sum(1)])
    for other in (lambda a: a.bool().float().sum(), lambda a: a.bool().sum(0), lambda a: a.sum(0), lambda a: a.float()):
        torch.testing.assert_close(other(acts()), other(made_later.detach().clone()))


def test_pre_acts_that_are_read_too_late() -> None:
    sae = made("train standard")
    with sk.patch(sae):
        output = sae.training_forward_pass(step_input(data()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_in_time = sae.training_forward_pass(step_input(data())).hidden_pre.clone()
    with torch.no_grad():
        sae.W_enc.mul_(2.0)
    with pytest.warns(RuntimeWarning, match=r"of the new ones. Read them before the optimiser's step"):
        late = output.hidden_pre.clone()
    assert not torch.allclose(late, read_in_time)


def test_all_kinds_are_tested() -> None:
    assert {name for _, name, _ in TRAINED.values()} == {
        f"{name}TrainingSAE" for name in ("TopK", "BatchTopK", "MatryoshkaBatchTopK", "Standard", "Gated", "JumpReLU")
    }
