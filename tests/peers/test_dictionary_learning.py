"""dictionary_learning's coders and trainers, patched against themselves."""

from __future__ import annotations

import copy
import importlib
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from support.no_dense import NoDense
from support.peer import peer
from torch import Tensor, nn

import sae_kernels as sk
from sae_kernels.errors import BackendError
from sae_kernels.patches import builtin
from sae_kernels.patches import dictionary_learning as ours
from sae_kernels.patches._acts import codes_of

pytestmark = pytest.mark.peers
peer("dictionary_learning", "dictionary-learning")

D, M, K, N = 12, 96, 6, 40
GROUPS = [16, 32, 48]
CODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "relu": ("dictionary", "AutoEncoder", {}),
    "relu new": ("dictionary", "AutoEncoderNew", {}),
    "gated": ("dictionary", "GatedAutoEncoder", {}),
    "jumprelu": ("dictionary", "JumpReluAutoEncoder", {}),
    "topk": ("trainers.top_k", "AutoEncoderTopK", {"k": K}),
    "batchtopk": ("trainers.batch_top_k", "BatchTopKSAE", {"k": K}),
    "matryoshka": ("trainers.matryoshka_batch_top_k", "MatryoshkaBatchTopKSAE", {"k": K, "group_sizes": GROUPS}),
}
TRAINERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "topk": ("top_k", "TopKTrainer", {}),
    "batchtopk": ("batch_top_k", "BatchTopKTrainer", {}),
    "matryoshka": (
        "matryoshka_batch_top_k",
        "MatryoshkaBatchTopKTrainer",
        {"group_fractions": [0.25, 0.25, 0.5], "group_weights": [0.5, 0.2, 0.3]},
    ),
}
FLAGS: dict[str, list[dict[str, Any]]] = {
    "gated": [{"return_gate": True}, {"normalize_decoder": True}, {"return_gate": True, "normalize_decoder": True}],
    "jumprelu": [{"output_pre_jump": True}],
    "topk": [{"return_topk": True}, {"use_threshold": True}, {"return_topk": True, "use_threshold": True}],
    "batchtopk": [{"use_threshold": False}, {"return_active": True}, {"return_active": True, "use_threshold": False}],
    "matryoshka": [{"use_threshold": False}, {"return_active": True}, {"return_active": True, "use_threshold": False}],
}


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that small tests do not run the host's path only."""
    monkeypatch.setattr(ours, "FEW", 4)


def home(module: str) -> Any:
    return importlib.import_module(f"dictionary_learning.{module}")


def made(kind: str, dtype: torch.dtype = torch.float64, threshold: float | None = 0.4, m: int = M) -> Any:
    module, name, keys = CODERS[kind]
    if kind == "matryoshka":
        keys = {**keys, "group_sizes": [m // 4, m // 4, m - 2 * (m // 4)]}
    torch.manual_seed(0)
    coder = getattr(home(module), name)(D, m, **keys)
    with torch.no_grad():
        for key, parameter in coder.named_parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
            if key == "threshold":
                parameter.uniform_(-0.2, 0.8)
        if threshold is not None and kind in ("topk", "batchtopk", "matryoshka"):
            coder.threshold.fill_(threshold)
    return coder.to(dtype)


def data(*lead: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*(lead or (N,)), D, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


@contextmanager
def patched(module: Any, wanted: bool) -> Iterator[None]:
    handle = sk.patch(module) if wanted else None
    yield
    if handle:
        handle.undo()


def leaves(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value)


def gradients(outs: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
    random = torch.Generator().manual_seed(2)
    total = torch.zeros((), dtype=torch.float64)
    for out in outs:
        if out.is_floating_point() and out.requires_grad:
            total = total + (out * torch.randn(out.shape, generator=random, dtype=torch.float64)).sum()
    grads = torch.autograd.grad(total, inputs, allow_unused=True)
    return [torch.zeros_like(given) if grad is None else grad for grad, given in zip(grads, inputs, strict=True)]


def by_value(kind: str, flags: dict[str, Any], outs: list[Tensor], coder: Any) -> list[Tensor]:
    """Top-k values and indices come in any order: sorted; indices as what they point at."""
    if kind != "topk" or not flags.get("return_topk"):
        return outs
    acts, values, indices, pre_acts = outs
    torch.testing.assert_close(pre_acts.gather(-1, indices), values)
    assert indices.dtype == torch.int64
    return [acts, values.sort(-1).values, pre_acts]


def test_the_classes_that_are_listed_are_those_that_are_known() -> None:
    (spec,) = [spec for spec in builtin.sae_kernels_patches() if spec.name == "dictionary_learning"]
    assert spec.classes == ours.CLASSES
    for target in spec.classes:
        module, _, name = target.partition(":")
        assert hasattr(importlib.import_module(module), name)


@pytest.mark.parametrize("lead", [(N,), (4, 10), (2, 4, 5), (3,), ()], ids=str)
@pytest.mark.parametrize("kind", CODERS)
def test_forward_encode_decode_and_every_gradient(kind: str, lead: tuple[int, ...]) -> None:
    if kind == "matryoshka" and len(lead) == 0:
        pytest.skip("the host takes no vector")
    coder = made(kind)
    found = {}
    for who in ("theirs", "mine"):
        with patched(coder, who == "mine"):
            results = []
            x = torch.randn(*lead, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
            parameters = [x, *coder.parameters()]
            out = coder(x)
            results += [out, *gradients([out], parameters)]
            out, acts = coder(x, output_features=True)
            results += [out, acts, *gradients([out, acts], parameters)]
            acts = coder.encode(x)
            out = coder.decode(acts)
            results += [acts, out, *gradients([out, acts], parameters)]
            found[who] = results
    for mine, theirs in zip(found["mine"], found["theirs"], strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(("kind", "flags"), [(kind, flags) for kind in FLAGS for flags in FLAGS[kind]], ids=str)
def test_encode_with_its_flags(kind: str, flags: dict[str, Any]) -> None:
    coder = made(kind)
    found = {}
    for who in ("theirs", "mine"):
        with patched(coder, who == "mine"):
            x = data().requires_grad_()
            outs = by_value(kind, flags, leaves(coder.encode(x, **flags)), coder)
            found[who] = [*outs, *gradients(outs, [x, *coder.parameters()])]
            if who == "mine" and kind not in ("gated",):
                assert codes_of(outs[0]) is not None
    for mine, theirs in zip(found["mine"], found["theirs"], strict=True):
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(+mine if mine.is_floating_point() else mine, theirs)


@pytest.mark.parametrize("kind", CODERS)
def test_the_gradient_of_acts(kind: str) -> None:
    """What attribution asks for: ∂ reconstruction/∂ acts, also where they are 0."""
    coder = made(kind)
    found = {}
    for who in ("theirs", "mine"):
        with patched(coder, who == "mine"):
            acts = coder.encode(data())
            acts.retain_grad()
            out = coder.decode(acts)
            (direct,) = torch.autograd.grad(out.pow(2).sum(), acts, retain_graph=True)
            out.pow(2).sum().backward()
            found[who] = [direct, acts.grad]
            both = coder(data(), output_features=True)
            found[who] += torch.autograd.grad(both[0].pow(2).sum(), both[1], allow_unused=kind == "relu new")
    for mine, theirs in zip(found["mine"], found["theirs"], strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("kind", CODERS)
def test_few_positive_pre_acts(kind: str) -> None:
    """Rows with fewer than k, and none at all."""
    coder = made(kind)
    with torch.no_grad():
        for name in ("encoder.bias", "b_enc", "gate_bias"):
            if name in dict(coder.named_parameters()):
                coder.get_parameter(name).sub_(3.0)
    found = {}
    flags = {"use_threshold": False} if kind in ("topk", "batchtopk", "matryoshka") else {}
    for who in ("theirs", "mine"):
        with patched(coder, who == "mine"):
            x = data().requires_grad_()
            acts = coder.encode(x, **flags)
            out = coder(x)
            found[who] = [acts, out, *gradients([acts, out], [x, *coder.parameters()])]
    assert int((found["theirs"][0] > 0).sum(1).min()) < K
    for mine, theirs in zip(found["mine"], found["theirs"], strict=True):
        torch.testing.assert_close(mine, theirs)


def test_inactive_groups_and_no_threshold_yet() -> None:
    for active in (1, 2, 3):
        for threshold in (-1.0, 0.4):
            coder = made("matryoshka", threshold=threshold)
            coder.active_groups = active
            found = {}
            for who in ("theirs", "mine"):
                with patched(coder, who == "mine"):
                    x = data().requires_grad_()
                    outs = [coder(x), coder.encode(x, use_threshold=False), *coder.encode(x, return_active=True)]
                    found[who] = [*outs, *gradients(outs, [x, *coder.parameters()])]
            for mine, theirs in zip(found["mine"], found["theirs"], strict=True):
                torch.testing.assert_close(+mine if mine.is_floating_point() else mine, theirs)


@pytest.mark.parametrize("apply", [True, False])
def test_jumprelu_with_and_without_b_dec(apply: bool) -> None:
    coder = made("jumprelu")
    coder.apply_b_dec_to_input = apply
    theirs = coder(data())
    with sk.patch(coder):
        torch.testing.assert_close(coder(data()), theirs)


def test_few_tokens_of_weights_that_lie_by_rows() -> None:
    """The host's own path is for those by columns."""
    one = trainer("topk")
    expected = one.ae(data(3))
    with sk.patch(one):
        acts = one.ae.encode(data(3))
        assert codes_of(acts) is not None
        torch.testing.assert_close(one.ae(data(3)), expected)
    with sk.patch(one.ae):
        assert codes_of(one.ae.encode(data(3))) is None
        torch.testing.assert_close(one.ae(data(3)), expected)


def test_ghosts_hooks_and_edits_are_the_hosts() -> None:
    coder = made("relu")
    mask = (torch.arange(M) % 3 == 0)[None]
    theirs = coder(data(), output_features=True, ghost_mask=mask)
    with sk.patch(coder):
        torch.testing.assert_close(coder(data(), output_features=True, ghost_mask=mask), theirs)
        acts = coder.encode(data()).detach().clone()
        acts[:, 3] += 5.0
        torch.testing.assert_close(coder.decode(acts), acts @ coder.decoder.weight.mT + coder.bias)
        seen = []
        hook = coder.encoder.register_forward_hook(lambda module, args, out: seen.append(out) or 2 * out)
        mine = coder(data())
        hook.remove()
        assert len(seen) == 1
        torch.testing.assert_close(
            mine, torch.relu(2 * coder.encoder(data() - coder.bias)) @ coder.decoder.weight.mT + coder.bias
        )
        remembered = coder.encode(data())
        hook = coder.decoder.register_forward_hook(lambda module, args, out: 0 * out)
        torch.testing.assert_close(coder.decode(remembered), coder.bias.expand(N, D))
        hook.remove()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", CODERS)
def test_dtypes(kind: str, dtype: torch.dtype) -> None:
    coder = made(kind, dtype)
    x = data(2000, dtype=dtype)  # many: which of two near k-th pre-acts is taken is a matter of luck in 16 bits
    truth, theirs = copy.deepcopy(coder).double()(x.double()).detach(), coder(x).detach()
    with sk.patch(coder):
        mine = coder(x).detach()
        assert coder.encode(x).dtype == dtype
    assert mine.dtype == theirs.dtype
    rms = lambda tensor: float((tensor.double() - truth).square().mean().sqrt())  # noqa: E731
    assert rms(mine) <= 1.5 * rms(theirs) + 1e-6


@pytest.mark.parametrize("kind", CODERS)
def test_autocast(kind: str) -> None:
    coder = made(kind, torch.float32)
    x = data(2000, dtype=torch.float32)
    truth = coder(x).detach()
    found = {}
    for who in ("theirs", "mine"):
        with patched(coder, who == "mine"), torch.autocast("cpu", torch.bfloat16):
            out, acts = coder(x, output_features=True)
            again = coder.decode(coder.encode(x))
        assert out.dtype == again.dtype
        grads = torch.autograd.grad(again.float().square().mean(), list(coder.parameters()), allow_unused=True)
        found[who] = [out.detach(), acts.detach(), *[grad for grad in grads if grad is not None]]
    for mine, theirs in zip(found["mine"], found["theirs"], strict=True):
        assert mine.dtype == theirs.dtype
    for mine, theirs in zip(found["mine"][2:], found["theirs"][2:], strict=True):
        assert float((mine - theirs).norm()) <= 0.05 * float(theirs.norm())
    rms = lambda tensor: float((tensor - truth).square().mean().sqrt())  # noqa: E731
    assert rms(found["mine"][0].float()) <= 1.5 * rms(found["theirs"][0].float())


def trainer(kind: str, dtype: torch.dtype = torch.float64, d: int = D, m: int = M, **keys: Any) -> Any:
    module, name, more = TRAINERS[kind]
    made = getattr(home(f"trainers.{module}"), name)(
        **{
            "steps": 20,
            "activation_dim": d,
            "dict_size": m,
            "k": K,
            "layer": 0,
            "lm_name": "none",
            "warmup_steps": 2,
            "threshold_start_step": 3,
            "threshold_beta": 0.5,
            "lr": 3e-2,
            "seed": 0,
            "device": "cpu",
            **more,
            **keys,
        }
    )
    made.ae.to(dtype)  # in place: the optimiser knows the parameters
    made.dead_feature_threshold = 3 * N
    return made


def batches(n: int, steps: int = 10) -> list[Tensor]:
    """Directions that come and go, so that latents die and come back."""
    random = torch.Generator().manual_seed(3)
    directions = torch.randn(16, D, generator=random, dtype=torch.float64)
    out = []
    for step in range(steps):
        used = directions[: 4 if 1 <= step < 7 else 16]
        out.append(torch.rand(n, len(used), generator=random, dtype=torch.float64) @ used + 0.5)
    return out


@pytest.mark.parametrize("alpha", [1 / 32, 0.0])
@pytest.mark.parametrize("kind", TRAINERS)
def test_ten_steps_of_training(kind: str, alpha: float) -> None:
    """Weights, counters, threshold, logs: the same, with latents that die and some that come back."""
    found, n_dead, revived = {}, set(), 0
    for who in ("theirs", "mine"):
        one = trainer(kind, auxk_alpha=alpha)
        seen = []
        with patched(one, who == "mine"):
            for step, x in enumerate(batches(N)):
                before = one.num_tokens_since_fired >= one.dead_feature_threshold
                loss = one.update(step, x)
                after = one.num_tokens_since_fired.clone()
                revived += int((before & (after == 0)).any())
                seen.append([loss, after, one.ae.threshold.clone(), *[p.detach().clone() for p in one.ae.parameters()]])
                seen[-1] += [
                    one.effective_l0,
                    one.dead_features,
                    float(torch.as_tensor(one.pre_norm_auxk_loss).detach()),
                ]
                n_dead.add(one.dead_features)
        found[who] = seen
    for step, (mine, theirs) in enumerate(zip(found["mine"], found["theirs"], strict=True)):
        for a, b in zip(mine, theirs, strict=True):  # AuxK is float32 in the host
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=lambda text, step=step: f"step {step}: {text}")
    if alpha:
        assert max(n_dead) > D // 2, "no dead latents: nothing was tested"
        assert revived, "none came back"


@pytest.mark.parametrize("kind", TRAINERS)
def test_gradients_and_logs_of_a_step(kind: str) -> None:
    """In float64, with AuxK far from small. What AuxK is left with is float32 in the host."""
    found = {}
    for who in ("theirs", "mine"):
        one = trainer(kind, auxk_alpha=3.0)
        one.num_tokens_since_fired[::3] = one.dead_feature_threshold
        with torch.no_grad():
            for name, parameter in one.ae.named_parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
        with patched(one, who == "mine"):
            logged = one.loss(data(), step=5, logging=True)
            loss = one.loss(data(), step=5)
            grads = torch.autograd.grad(loss, list(one.ae.parameters()))
        stats = {key: float(torch.as_tensor(value).detach()) for key, value in one.get_logging_parameters().items()}
        found[who] = (logged, loss.detach(), grads, stats, one.ae.threshold)
    mine, theirs = found["mine"], found["theirs"]
    assert mine[0]._fields == theirs[0]._fields
    assert mine[0].losses == pytest.approx(theirs[0].losses, rel=1e-6)
    assert list(mine[0].losses) == list(theirs[0].losses)
    torch.testing.assert_close(mine[0].f, theirs[0].f)
    torch.testing.assert_close(mine[0].x_hat, theirs[0].x_hat)
    torch.testing.assert_close(mine[1], theirs[1], rtol=1e-6, atol=1e-6)
    for a, b in zip(mine[2], theirs[2], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        assert float(b.abs().max()) > 1e-3
    assert mine[3] == pytest.approx(theirs[3], rel=1e-5)
    assert mine[3]["dead_features"] > 0
    torch.testing.assert_close(mine[4], theirs[4])


@pytest.mark.parametrize("kind", TRAINERS)
def test_a_step_in_autocast(kind: str) -> None:
    """As the host trains on a GPU."""
    found = {}
    for who in ("theirs", "mine"):
        one = trainer(kind, torch.float32)
        one.num_tokens_since_fired[::3] = one.dead_feature_threshold
        with patched(one, who == "mine"):
            with torch.autocast("cpu", torch.bfloat16):
                logged = one.loss(data(2000, dtype=torch.float32), step=5, logging=True)
                loss = one.loss(data(2000, dtype=torch.float32), step=5)
            grads = torch.autograd.grad(loss, list(one.ae.parameters()))
        found[who] = logged, grads, one.ae.threshold, loss
    mine, theirs = found["mine"], found["theirs"]
    assert mine[0].losses == pytest.approx(theirs[0].losses, rel=2e-2)
    assert [mine[0].x_hat.dtype, mine[0].f.dtype, mine[3].dtype] == [
        theirs[0].x_hat.dtype,
        theirs[0].f.dtype,
        theirs[3].dtype,
    ]
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


@pytest.mark.parametrize("kind", CODERS)
def test_a_forward_makes_no_dense_tensor(kind: str) -> None:
    n, m = 1024, 9000
    coder = made(kind, torch.float32, threshold=3.0, m=m)
    with torch.no_grad():
        for name in ("encoder.bias", "b_enc", "gate_bias"):
            if name in dict(coder.named_parameters()):
                coder.get_parameter(name).sub_(4.0)
    x = torch.randn(n, D, requires_grad=True)
    with sk.patch(coder), sk.use("cpu"), NoDense(n, m):
        coder(x).square().sum().backward()
    assert float(x.grad.abs().max()) > 0


def test_a_patch_comes_and_goes() -> None:
    for kind in CODERS:
        coder = made(kind, torch.float32)
        cls, x = type(coder), data(dtype=torch.float32)
        before = coder(x)
        handle = sk.patch(coder)
        assert sk.patch(coder) is handle
        assert isinstance(coder, cls)
        coder.to(torch.float64).to(torch.float32)
        coder.load_state_dict(pickle.loads(pickle.dumps(coder.state_dict())))
        assert type(copy.deepcopy(coder)) is type(pickle.loads(pickle.dumps(coder))) is cls
        torch.testing.assert_close(coder(x), before)
        handle.undo()
        assert type(coder) is cls


@pytest.mark.parametrize("kind", TRAINERS)
def test_a_trainers_patch_comes_and_goes(kind: str) -> None:
    one = trainer(kind)
    cls, coder = type(one), type(one.ae)
    handle = sk.patch(one)
    assert sk.patch(one) is handle
    assert isinstance(one, cls)
    assert type(one.ae) is not coder
    assert one.config["trainer_class"] == cls.__name__
    strides = {name: parameter.stride() for name, parameter in one.ae.named_parameters()}
    again = copy.deepcopy(one)
    assert type(again) is cls
    assert type(again.ae) is coder
    torch.testing.assert_close(one.loss(data(), step=5), again.loss(data(), step=5))
    assert type(pickle.loads(pickle.dumps(one.ae))) is coder
    one.ae.load_state_dict(again.ae.state_dict())
    assert {name: parameter.stride() for name, parameter in one.ae.named_parameters()} == strides
    handle.undo()
    fresh = trainer(kind).ae
    for name, parameter in one.ae.named_parameters():
        assert parameter.stride() == fresh.get_parameter(name).stride()
        assert torch.equal(parameter, fresh.get_parameter(name))
    assert type(one) is cls
    assert type(one.ae) is coder
    with sk.patch(one.ae):
        mine = type(one.ae)
        sk.patch(one).undo()
        assert type(one.ae) is mine, "the coder had been patched by itself"


def test_loading_while_patched(tmp_path: Any) -> None:
    coder = made("topk", torch.float32)
    with sk.patch(coder):
        torch.save(coder.state_dict(), tmp_path / "ae.pt")
        expected = coder(data(dtype=torch.float32))
    torch.testing.assert_close(type(coder).from_pretrained(tmp_path / "ae.pt")(data(dtype=torch.float32)), expected)


def test_it_declines_what_it_does_not_know() -> None:
    with pytest.raises(BackendError, match=r"dictionary:IdentityDict is none of AutoEncoder, .*MatryoshkaBatchTopKTr"):
        sk.patch(home("dictionary").IdentityDict(D))
    coder = made("topk")
    coder.decoder = nn.Sequential(coder.decoder)
    with pytest.raises(BackendError, match=r"decoder is a Sequential, expected nn.Linear"):
        sk.patch(coder)
    one = trainer("topk")
    one.ae = made("batchtopk")
    with pytest.raises(BackendError, match="expected AutoEncoderTopK"):
        sk.patch(one)
    one = trainer("topk")
    one.get_auxiliary_loss = lambda *args: 0.0
    with pytest.raises(BackendError, match="get_auxiliary_loss was replaced on the trainer itself"):
        sk.patch(one)
    assert "dictionary_learning" in str(sk.explain("patch", one))
