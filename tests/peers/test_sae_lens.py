"""SAELens' SAEs and transcoders, patched against themselves: encode, decode, forward, hooks."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from support.no_dense import NoDense
from support.peer import all_close, assert_classes_are_listed, data, gradients, peer, plain_and_patched
from support.peer_sae_lens import KINDS, PENALISED, TRAINED, D, M, N, made
from torch import Tensor, nn

import sae_kernels as sk
from sae_kernels.errors import BackendError
from sae_kernels.patches import _sae_lens_penalised as penalised
from sae_kernels.patches import sae_lens as ours
from sae_kernels.patches._acts import codes_of

pytestmark = pytest.mark.peers
sae_lens = peer("sae_lens", "sae-lens")


def test_the_classes_that_are_listed_are_those_that_are_known() -> None:
    assert_classes_are_listed("sae_lens", ours.CLASSES)


@pytest.mark.parametrize("lead", [(N,), (4, 10), (2, 4, 5)], ids=str)
@pytest.mark.parametrize("kind", [*KINDS, *TRAINED])
def test_forward_encode_decode_and_every_gradient(kind: str, lead: tuple[int, ...]) -> None:
    sae = made(kind)

    def run() -> list[Tensor]:
        x = data(*lead).requires_grad_()
        inputs = [x, *sae.parameters()]
        out = sae(x)
        results = [out, *gradients(out, inputs)]
        acts = sae.encode(x)
        decoded = sae.decode(acts)
        return [*results, acts, decoded, *gradients([decoded, acts], inputs)]

    theirs, mine = plain_and_patched(sae, run)
    all_close(mine, theirs)


@pytest.mark.parametrize("kind", PENALISED)
def test_many_active_latents(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As at the start of a training: all pairs, in chunks, and no codes."""
    monkeypatch.setattr(penalised, "FULL", 0.0)
    monkeypatch.setattr(penalised, "ASKED", 4)
    test_forward_encode_decode_and_every_gradient(kind, (2, 4, 5))
    sae = made(kind)
    with sk.patch(sae), torch.no_grad():
        assert codes_of(sae.encode(data())) is None
        monkeypatch.setattr(penalised, "FULL", 1.1)
        assert codes_of(sae.encode(data())) is not None


@pytest.mark.parametrize("kind", [*KINDS, *TRAINED])
def test_hooks_keep_firing(kind: str) -> None:
    """Acts changed at a hook point reach the output; what is seen is what the host would show."""
    sae = made(kind)
    for point in ("hook_sae_input", "hook_sae_acts_pre", "hook_sae_acts_post", "hook_sae_recons", "hook_sae_output"):

        def run(point: str = point) -> list[Tensor]:
            seen: list[Tensor] = []

            def hook(tensor: Tensor, hook: Any) -> Tensor:
                seen.append(tensor.detach().clone())
                return tensor * 1.5

            getattr(sae, point).add_hook(hook)
            out = sae(data())
            getattr(sae, point).remove_hooks()
            return [out.detach(), *seen]

        theirs, mine = plain_and_patched(sae, run)
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("kind", ["topk", "train standard", "train jumprelu"])
def test_run_with_cache(kind: str) -> None:
    sae = made(kind)
    (out, cache), (mine, my_cache) = plain_and_patched(sae, lambda: sae.run_with_cache(data()))
    torch.testing.assert_close(mine, out)
    assert my_cache.keys() == cache.keys()
    for name in cache:
        torch.testing.assert_close(my_cache[name], cache[name])


@pytest.mark.parametrize("kind", ["topk", "train standard"])
def test_the_error_term(kind: str) -> None:
    sae = made(kind)
    with pytest.warns(DeprecationWarning, match="use_error_term"):
        sae.use_error_term = True
    with sk.patch(sae):
        torch.testing.assert_close(sae(data()), data())


def test_a_method_that_somebody_replaced_is_called() -> None:
    sae = made("train standard")
    own = sae.encode_with_hidden_pre
    sae.encode_with_hidden_pre = lambda x: tuple(2 * each for each in own(x))
    theirs, mine = plain_and_patched(sae, lambda: [sae(data()), sae.encode(data())])
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(
    "kind", ["topk", "topk rescaled", "jumprelu", "gated", "transcoder", "train topk", "train jumprelu", "train gated"]
)
def test_acts_have_their_gradient(kind: str) -> None:
    """As attribution asks for it: of the output to the dense acts, also where they are 0."""
    sae = made(kind)

    def run() -> tuple[Tensor, ...]:
        acts = sae.encode(data())
        return torch.autograd.grad(sae.decode(acts).square().sum(), [acts, sae.W_dec, sae.b_dec])

    theirs, mine = plain_and_patched(sae, run)
    all_close(mine, theirs)


@pytest.mark.parametrize("kind", ["topk", "jumprelu", "standard", "train standard"])
def test_edited_acts_are_decoded_as_edited(kind: str) -> None:
    """An ablation and a clamp, as people steer."""
    sae = made(kind)

    @torch.no_grad()
    def run() -> Tensor:
        acts = sae.encode(data())
        acts[:, 5] = 0.0
        acts[:, 7] += 10.0
        return sae.decode(acts)

    theirs, mine = plain_and_patched(sae, run)
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("kind", ["topk", "topk rescaled", "jumprelu", "standard", "gated", "train batchtopk"])
def test_bfloat16(kind: str) -> None:
    sae = made(kind, "bfloat16")
    x = data(dtype=torch.bfloat16)
    exact = made(kind)
    exact.load_state_dict({key: value.double() for key, value in sae.state_dict().items()})
    truth, theirs = exact(x.double()).detach(), sae(x).detach()
    with sk.patch(sae):
        mine = sae(x).detach()
        assert sae.encode(x).dtype == torch.bfloat16
    assert mine.dtype == theirs.dtype
    rms = lambda tensor: float((tensor.double() - truth).square().mean().sqrt())  # noqa: E731
    assert rms(mine) <= 1.5 * rms(theirs)


@pytest.mark.parametrize(
    "kind", ["topk", "topk rescaled", "jumprelu", "standard", "gated", "transcoder", "train topk", "train standard"]
)
def test_autocast(kind: str) -> None:
    sae = made(kind, "float32")
    x = data(2000, dtype=torch.float32)
    truth = sae(x).detach()

    def run() -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            out, acts = sae(x), sae.encode(x)
            again = sae.decode(acts)
        return [
            out.detach(),
            acts.detach(),
            again.detach(),
            *torch.autograd.grad(out.float().square().mean(), sae.W_dec),
        ]

    theirs, mine = plain_and_patched(sae, run)
    assert [each.dtype for each in mine] == [each.dtype for each in theirs]
    rms = lambda tensor: float((tensor.float() - truth).square().mean().sqrt())  # noqa: E731
    assert rms(mine[0]) <= 1.5 * rms(theirs[0])
    assert rms(mine[2]) <= 1.5 * rms(theirs[2])
    assert float((mine[3] - theirs[3]).norm()) <= 0.05 * float(theirs[3].norm())


@pytest.mark.parametrize("kind", ["topk", "train batchtopk", "train standard", "train gated", "train jumprelu"])
def test_no_dense_tensor(kind: str) -> None:
    n, m = 1024, 9000
    sae = made(kind, "float32", d_sae=m)
    x = torch.randn(n, D)
    with sk.patch(sae), sk.use("cpu"), NoDense(n, m):
        sae(x).square().sum().backward()


@pytest.mark.parametrize("kind", ["topk", "train standard", "train gated", "train jumprelu"])
def test_a_patch_comes_and_goes(kind: str, tmp_path: Any) -> None:
    sae = made(kind, "float32")
    cls, x = type(sae), data(dtype=torch.float32)
    before = sae(x)
    handle = sk.patch(sae)
    assert sk.patch(sae) is handle
    assert isinstance(sae, cls)
    sae.to(torch.float64).to(torch.float32)
    sae.load_state_dict(sae.state_dict())
    torch.testing.assert_close(sae(x), before)
    sae.save_model(tmp_path)
    assert type(copy.deepcopy(sae)) is cls
    handle.undo()
    assert type(sae) is cls
    again = pickle.loads(pickle.dumps(sae.state_dict()))
    assert again.keys() == sae.state_dict().keys()
    loader = sae_lens.TrainingSAE if kind.startswith("train") else sae_lens.SAE
    torch.testing.assert_close(loader.load_from_disk(tmp_path)(x), before)


def test_it_declines_what_it_does_not_know() -> None:
    with pytest.raises(BackendError, match=r"container:ModuleList is none of StandardSAE, .*JumpReLUTrainingSAE"):
        sk.patch(nn.ModuleList())
    topk = made("topk")
    topk.activation_fn = nn.Tanh()
    with pytest.raises(BackendError, match=r"activation_fn is a Tanh, expected ReLU or TopK or BatchTopK"):
        sk.patch(topk)
    assert "sae_lens" in str(sk.explain("patch", topk))

    class Derived(type(made("train standard"))):
        """Somebody's own loss."""

        def calculate_aux_loss(self, **keys: Any) -> dict[str, Tensor]:
            return {}

    sae = made("train standard")
    sae.__class__ = Derived
    with pytest.raises(BackendError, match=r"Derived is none of StandardSAE"):
        sk.patch(sae)
    assert sae.cfg.d_sae == M
