"""dictionary_learning's coders, patched against themselves."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from support.no_dense import NoDense
from support.peer import D, all_close, assert_classes_are_listed, data, gradients, peer, plain_and_patched
from support.peer_dictionary_learning import CODERS, K, M, N, coder, home, lowered
from torch import Tensor, nn

import sae_kernels as sk
from sae_kernels.errors import BackendError
from sae_kernels.patches import dictionary_learning as ours
from sae_kernels.patches._acts import codes_of

pytestmark = pytest.mark.peers
peer("dictionary_learning", "dictionary-learning")

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


def test_the_classes_that_are_listed_are_those_that_are_known() -> None:
    assert_classes_are_listed("dictionary_learning", ours.CLASSES)


@pytest.mark.parametrize("lead", [(N,), (4, 10), (2, 4, 5), (3,), ()], ids=str)
@pytest.mark.parametrize("kind", CODERS)
def test_forward_encode_decode_and_every_gradient(kind: str, lead: tuple[int, ...]) -> None:
    if kind == "matryoshka" and len(lead) == 0:
        pytest.skip("the host takes no vector")
    made = coder(kind)

    def run() -> list[Tensor]:
        x = (data(*lead) if lead else data(1)[0]).requires_grad_()
        inputs = [x, *made.parameters()]
        out = made(x)
        results = [out, *gradients(out, inputs)]
        out, acts = made(x, output_features=True)
        results += [out, acts, *gradients([out, acts], inputs)]
        acts = made.encode(x)
        out = made.decode(acts)
        return [*results, acts, out, *gradients([out, acts], inputs)]

    theirs, mine = plain_and_patched(made, run)
    all_close(mine, theirs)


@pytest.mark.parametrize(("kind", "flags"), [(kind, flags) for kind in FLAGS for flags in FLAGS[kind]], ids=str)
def test_encode_with_its_flags(kind: str, flags: dict[str, Any]) -> None:
    made = coder(kind)

    def run() -> list[Tensor]:
        x = data().requires_grad_()
        encoded = made.encode(x, **flags)
        outs = [encoded] if isinstance(encoded, Tensor) else list(encoded)
        if kind not in ("gated",):
            assert (codes_of(outs[0]) is None) == (type(made).__dict__.get("_sae_kernels_host") is None)
        if flags.get("return_topk"):  # values and indices come in any order
            acts, values, indices, pre_acts = outs
            torch.testing.assert_close(pre_acts.gather(-1, indices), values)
            assert indices.dtype == torch.int64
            outs = [acts, values.sort(-1).values, pre_acts]
        return [*outs, *gradients(outs, [x, *made.parameters()])]

    theirs, mine = plain_and_patched(made, run)
    all_close(mine, theirs)


@pytest.mark.parametrize("kind", CODERS)
def test_the_gradient_of_acts(kind: str) -> None:
    """What attribution asks for: ∂ reconstruction/∂ acts, also where they are 0."""
    made = coder(kind)

    def run() -> list[Tensor | None]:
        acts = made.encode(data())
        acts.retain_grad()
        out = made.decode(acts)
        (direct,) = torch.autograd.grad(out.pow(2).sum(), acts, retain_graph=True)
        out.pow(2).sum().backward()
        both = made(data(), output_features=True)
        return [
            direct,
            acts.grad,
            *torch.autograd.grad(both[0].pow(2).sum(), both[1], allow_unused=kind == "relu new"),
        ]

    theirs, mine = plain_and_patched(made, run)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", CODERS)
def test_few_positive_pre_acts(kind: str) -> None:
    """Rows with fewer than k, and none at all."""
    made = lowered(coder(kind), 3.0)
    flags = {"use_threshold": False} if kind in ("topk", "batchtopk", "matryoshka") else {}

    def run() -> list[Tensor]:
        x = data().requires_grad_()
        acts = made.encode(x, **flags)
        out = made(x)
        return [acts, out, *gradients([acts, out], [x, *made.parameters()])]

    theirs, mine = plain_and_patched(made, run)
    assert int((theirs[0] > 0).sum(1).min()) < K
    all_close(mine, theirs)


@pytest.mark.parametrize("threshold", [-1.0, 0.4])
@pytest.mark.parametrize("active", [1, 2, 3])
def test_inactive_groups_and_no_threshold_yet(active: int, threshold: float) -> None:
    made = coder("matryoshka", threshold=threshold)
    made.active_groups = active

    def run() -> list[Tensor]:
        x = data().requires_grad_()
        outs = [made(x), made.encode(x, use_threshold=False), *made.encode(x, return_active=True)]
        return [*outs, *gradients(outs, [x, *made.parameters()])]

    theirs, mine = plain_and_patched(made, run)
    all_close(mine, theirs)


@pytest.mark.parametrize("apply", [True, False])
def test_jumprelu_with_and_without_b_dec(apply: bool) -> None:
    made = coder("jumprelu")
    made.apply_b_dec_to_input = apply
    theirs, mine = plain_and_patched(made, lambda: made(data()))
    torch.testing.assert_close(mine, theirs)


def test_weights_lie_by_rows_while_patched() -> None:
    """Theirs lie by columns; nothing but strides tells the difference, and what is written meanwhile stays."""
    made = coder("topk")
    before = {name: parameter.clone(memory_format=torch.preserve_format) for name, parameter in made.named_parameters()}
    identity = [id(parameter) for parameter in made.parameters()]
    made(data()).sum().backward()
    grads = [parameter.grad.clone() for parameter in made.parameters()]
    handle = sk.patch(made)
    for parameter, grad in zip(made.parameters(), grads, strict=True):
        assert parameter.grad.stride() == parameter.stride()
        assert torch.equal(parameter.grad, grad)
    assert made.encoder.weight.stride(1) == made.decoder.weight.stride(0) == 1
    assert codes_of(made.encode(data(3))) is not None
    with torch.no_grad():
        made.decoder.weight.data[:, 3] = 7.0
    expected = made(data())
    handle.undo()
    torch.testing.assert_close(made(data()), expected)
    assert identity == [id(parameter) for parameter in made.parameters()]
    with torch.no_grad():
        before["decoder.weight"][:, 3] = 7.0
    for name, parameter in made.named_parameters():
        assert parameter.stride() == before[name].stride()
        assert torch.equal(parameter, before[name])


@pytest.mark.parametrize("how", ["tied", "a view", "shared memory"])
def test_weights_that_others_look_at_stay_where_they_are(how: str) -> None:
    """A few tokens are the host's own then: a copy would take longer."""
    made = coder("topk")
    if how == "tied":
        made.encoder.weight.data = made.decoder.weight.data.mT
    elif how == "a view":
        both = torch.stack([made.decoder.weight.data, made.decoder.weight.data])
        made.decoder.weight.data = both[0]
    else:
        made.decoder.weight.data.share_memory_()
    where = made.decoder.weight.data_ptr()
    expected, few_expected = made(data()), made(data(3))
    with sk.patch(made):
        assert made.decoder.weight.data_ptr() == where
        assert codes_of(made.encode(data(3))) is None
        assert codes_of(made.encode(data())) is not None
        torch.testing.assert_close(made(data(3)), few_expected)
        torch.testing.assert_close(made(data()), expected)
    assert made.decoder.weight.data_ptr() == where


def test_ghosts_hooks_and_edits_are_the_hosts() -> None:
    made = coder("relu")
    mask = (torch.arange(M) % 3 == 0)[None]
    theirs = made(data(), output_features=True, ghost_mask=mask)
    with sk.patch(made):
        torch.testing.assert_close(made(data(), output_features=True, ghost_mask=mask), theirs)
        acts = made.encode(data()).detach().clone()
        acts[:, 3] += 5.0
        torch.testing.assert_close(made.decode(acts), acts @ made.decoder.weight.mT + made.bias)
        seen = []
        hook = made.encoder.register_forward_hook(lambda module, args, out: seen.append(out) or 2 * out)
        mine = made(data())
        hook.remove()
        assert len(seen) == 1
        torch.testing.assert_close(
            mine, torch.relu(2 * made.encoder(data() - made.bias)) @ made.decoder.weight.mT + made.bias
        )
        remembered = made.encode(data())
        hook = made.decoder.register_forward_hook(lambda module, args, out: 0 * out)
        torch.testing.assert_close(made.decode(remembered), made.bias.expand(N, D))
        hook.remove()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", CODERS)
def test_dtypes(kind: str, dtype: torch.dtype) -> None:
    made = coder(kind, dtype)
    x = data(2000, dtype=dtype)  # many: which of two near k-th pre-acts is taken is a matter of luck in 16 bits
    truth, theirs = copy.deepcopy(made).double()(x.double()).detach(), made(x).detach()
    with sk.patch(made):
        mine = made(x).detach()
        assert made.encode(x).dtype == dtype
    assert mine.dtype == theirs.dtype
    rms = lambda tensor: float((tensor.double() - truth).square().mean().sqrt())  # noqa: E731
    assert rms(mine) <= 1.5 * rms(theirs) + 1e-6


@pytest.mark.parametrize("kind", CODERS)
def test_autocast(kind: str) -> None:
    made = coder(kind, torch.float32)
    x = data(2000, dtype=torch.float32)
    truth = made(x).detach()

    def run() -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            out, acts = made(x, output_features=True)
            again = made.decode(made.encode(x))
        assert out.dtype == again.dtype
        grads = torch.autograd.grad(again.float().square().mean(), list(made.parameters()), allow_unused=True)
        return [out.detach(), acts.detach(), *[grad for grad in grads if grad is not None]]

    theirs, mine = plain_and_patched(made, run)
    assert [each.dtype for each in mine] == [each.dtype for each in theirs]
    for a, b in zip(mine[2:], theirs[2:], strict=True):
        assert float((a - b).norm()) <= 0.05 * float(b.norm())
    rms = lambda tensor: float((tensor - truth).square().mean().sqrt())  # noqa: E731
    assert rms(mine[0].float()) <= 1.5 * rms(theirs[0].float())


@pytest.mark.parametrize("kind", CODERS)
def test_a_forward_makes_no_dense_tensor(kind: str) -> None:
    n, m = 1024, 9000
    made = lowered(coder(kind, torch.float32, threshold=3.0, m=m), 4.0)
    x = torch.randn(n, D, requires_grad=True)
    with sk.patch(made), sk.use("cpu"), NoDense(n, m):
        made(x).square().sum().backward()
    assert float(x.grad.abs().max()) > 0


def test_a_patch_comes_and_goes() -> None:
    for kind in CODERS:
        made = coder(kind, torch.float32)
        cls, x = type(made), data(dtype=torch.float32)
        before = made(x)
        handle = sk.patch(made)
        assert sk.patch(made) is handle
        assert isinstance(made, cls)
        made.to(torch.float64).to(torch.float32)
        made.load_state_dict(pickle.loads(pickle.dumps(made.state_dict())))
        assert type(copy.deepcopy(made)) is type(pickle.loads(pickle.dumps(made))) is cls
        torch.testing.assert_close(made(x), before)
        handle.undo()
        assert type(made) is cls


def test_loading_while_patched(tmp_path: Any) -> None:
    made = coder("topk", torch.float32)
    with sk.patch(made):
        torch.save(made.state_dict(), tmp_path / "ae.pt")
        expected = made(data(dtype=torch.float32))
    torch.testing.assert_close(type(made).from_pretrained(tmp_path / "ae.pt")(data(dtype=torch.float32)), expected)


def test_it_declines_what_it_does_not_know() -> None:
    with pytest.raises(BackendError, match=r"dictionary:IdentityDict is none of AutoEncoder, .*MatryoshkaBatchTopKTr"):
        sk.patch(home("dictionary").IdentityDict(D))
    made = coder("topk")
    made.decoder = nn.Sequential(made.decoder)
    with pytest.raises(BackendError, match=r"decoder is a Sequential, expected nn.Linear"):
        sk.patch(made)
