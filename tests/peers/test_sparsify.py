"""sparsify's SparseCoder, patched against itself."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from support.no_dense import NoDense
from support.peer import peer
from torch import Tensor, nn

import sae_kernels as sk
from sae_kernels.errors import ArgumentError, BackendError
from sae_kernels.patches import _group_max

pytestmark = pytest.mark.peers
sparsify = peer("sparsify", "eai-sparsify")

D, M, K, N = 24, 200, 8, 32
KINDS = {
    "sae": {},
    "multi": {"multi_topk": True},
    "transcoder": {"transcode": True},
    "skip": {"transcode": True, "skip_connection": True},
    "skip sae": {"skip_connection": True, "normalize_decoder": False},
    "groupmax sae": {"activation": "groupmax"},
    "groupmax multi": {"activation": "groupmax", "multi_topk": True},
    "groupmax": {"activation": "groupmax", "transcode": True},
}


def made(kind: str = "sae", dtype: torch.dtype = torch.float64, d: int = D, m: int = M, k: int = K) -> nn.Module:
    config = sparsify.SparseCoderConfig(num_latents=m, k=k, **KINDS[kind])
    torch.manual_seed(0)
    coder = sparsify.SparseCoder(d, config, dtype=dtype)
    with torch.no_grad():
        for parameter in coder.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return coder


def data(dtype: torch.dtype = torch.float64, n: int = N, d: int = D) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    x, y = (torch.randn(n, d, generator=random, dtype=torch.float64).to(dtype) for _ in range(2))
    return x, y, torch.arange(M) % 3 == 0


def passed(coder: nn.Module, x: Tensor, y: Tensor | None, dead: Tensor | None) -> tuple[Any, dict[str, Tensor]]:
    x = x.clone().requires_grad_()
    out = coder(x, y, dead_mask=dead)
    loss = out.fvu + 0.3 * out.auxk_loss + out.multi_topk_fvu / 8
    grads = torch.autograd.grad(loss, [x, *coder.parameters()], allow_unused=True)
    names = ["x", *(name for name, _ in coder.named_parameters())]
    zero = torch.zeros(())
    return out, {name: zero if grad is None else grad for name, grad in zip(names, grads, strict=True)}


def same(mine: Any, theirs: Any, **tolerance: float) -> None:
    for field in ("sae_out", "fvu", "auxk_loss", "multi_topk_fvu"):
        torch.testing.assert_close(getattr(mine, field), getattr(theirs, field), **tolerance)
    a, b = (out.latent_acts.sort(-1).values for out in (mine, theirs))
    torch.testing.assert_close(a, b, **tolerance)
    assert mine.latent_indices.dtype == theirs.latent_indices.dtype
    assert type(mine) is type(theirs)


def true_derivative(coder: nn.Module, x: Tensor, y: Tensor | None, dead: Tensor | None) -> dict[str, Tensor]:
    """The host's own forward pass, with autograd in the place of its fused encoder's backward."""

    def plain(input: Tensor, weight: Tensor, bias: Tensor, k: int, activation: str) -> Any:
        pre_acts = torch.relu(nn.functional.linear(input, weight, bias))
        if activation == "groupmax":
            values, indices = pre_acts.unflatten(-1, (k, -1)).max(dim=-1)
            indices = indices + torch.arange(k) * (len(weight) // k)
        else:
            values, indices = torch.topk(pre_acts, k, dim=-1, sorted=False)
        return sparsify.sparse_coder.EncoderOutput(values, indices, pre_acts)

    before = sparsify.sparse_coder.fused_encoder
    sparsify.sparse_coder.fused_encoder = plain
    try:
        return passed(coder, x, y, dead)[1]
    finally:
        sparsify.sparse_coder.fused_encoder = before


@pytest.mark.parametrize("with_dead", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_exact(kind: str, with_dead: bool) -> None:
    coder = made(kind)
    x, y, dead = data()
    y, dead = (None if kind.endswith(("sae", "multi")) else y), (dead if with_dead else None)
    expected = true_derivative(coder, x, y, dead)
    theirs, _ = passed(coder, x, y, dead)
    with sk.patch(coder):
        mine, grads = passed(coder, x, y, dead)
    same(mine, theirs)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected[name], msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("with_dead", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_compat_is_what_sparsify_does(kind: str, with_dead: bool) -> None:
    """Enough positive pre-acts in every row: nothing hangs on how ties at 0 are broken."""
    coder = made(kind)
    coder.encoder.bias.data += 3.0
    x, y, dead = data()
    dead = dead if with_dead else None
    assert int((coder.encode(x).top_acts > 0).sum(1).min()) == K
    theirs, expected = passed(coder, x, y, dead)
    with sk.patch(coder, gradients="compat"):
        mine, grads = passed(coder, x, y, dead)
    same(mine, theirs)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected[name], msg=lambda text, name=name: f"{name}: {text}")


def test_the_two_differ_where_the_docs_say() -> None:
    """AuxK trains the encoder in one and not in the other."""
    x, _, dead = data()
    found = {}
    for gradients in ("exact", "compat"):
        coder = made()
        with sk.patch(coder, gradients=gradients):
            coder(x, dead_mask=dead).auxk_loss.backward()
        found[gradients] = coder.encoder.weight.grad
    assert found["exact"] is not None
    assert float(found["exact"].abs().max()) > 0
    assert found["compat"] is None or float(found["compat"].abs().max()) == 0


@pytest.mark.parametrize("kind", ["sae", "groupmax sae"])
def test_few_positive_pre_acts(kind: str) -> None:
    """Rows with fewer than k, and none at all: values are the same, and exact gradients come from the positive only."""
    coder = made(kind)
    coder.encoder.bias.data -= 8.0
    x, _, _ = data()
    expected = true_derivative(coder, x, None, None)
    theirs, _ = passed(coder, x, None, None)
    assert int((theirs.latent_acts > 0).sum(1).min()) < K
    with sk.patch(coder):
        mine, grads = passed(coder, x, None, None)
    same(mine, theirs)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected[name])


def test_encode_and_its_pre_acts() -> None:
    coder = made()
    x, _, _ = data()
    x.requires_grad_()
    theirs = coder.encode(x)
    with sk.patch(coder):
        mine = coder.encode(x)
        assert isinstance(mine, type(theirs))
        torch.testing.assert_close(mine.top_acts.sort(-1).values, theirs.top_acts.sort(-1).values)
        torch.testing.assert_close(mine.pre_acts, theirs.pre_acts)
        acts, indices, pre_acts = mine
        assert pre_acts is mine.pre_acts is mine[2] is mine[-1]
        assert acts is mine[0]
        assert indices is mine[1]
        assert len(mine) == 3
        torch.testing.assert_close(pre_acts.gather(1, indices), acts)
        (grad,) = torch.autograd.grad(pre_acts.pow(2).sum(), x)
    inside = torch.relu(coder.encoder(x - coder.b_dec)).pow(2).sum()
    torch.testing.assert_close(grad, torch.autograd.grad(inside, x)[0])
    again = pickle.loads(pickle.dumps(type(theirs)(*(t.detach() for t in mine))))
    torch.testing.assert_close(again.top_acts, acts.detach())


def test_decode_has_a_gradient_at_zero() -> None:
    coder = made()
    acts = torch.rand(N, K, dtype=torch.float64) * (torch.arange(K) % 2)
    indices = torch.stack([torch.randperm(M)[:K] for _ in range(N)])
    grads = {}
    for name in ("theirs", "mine"):
        given = acts.clone().requires_grad_()
        handle = sk.patch(coder) if name == "mine" else None
        out = coder.decode(given, indices)
        grads[name] = torch.autograd.grad(out.pow(2).sum(), [given, coder.W_dec, coder.b_dec])
        if handle:
            handle.undo()
    torch.testing.assert_close(grads["mine"], grads["theirs"])


@pytest.mark.parametrize("kind", ["sae", "groupmax sae"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes(dtype: torch.dtype, kind: str) -> None:
    coder = made(kind, dtype)
    x, _, dead = data(dtype)
    exact = copy.deepcopy(coder).double()(x.double(), dead_mask=dead)
    theirs = coder(x, dead_mask=dead)
    with sk.patch(coder):
        mine = coder(x, dead_mask=dead)
    for field in ("sae_out", "fvu", "auxk_loss", "latent_acts"):
        a, b, truth = (getattr(out, field).detach() for out in (mine, theirs, exact))
        assert a.dtype == b.dtype
        if field != "latent_acts":
            assert float((a.double() - truth).abs().max()) <= 2 * float((b.double() - truth).abs().max()) + 1e-6


@pytest.mark.parametrize("kind", ["sae", "groupmax sae"])
def test_no_dense_tensor(kind: str) -> None:
    n, m = 1024, 9000
    coder = made(kind, torch.float32, m=m)
    x = data(torch.float32, n)[0]
    dead = torch.arange(m) % 3 == 0
    with sk.patch(coder), sk.use("cpu"), NoDense(n, m):
        out = coder(x, dead_mask=dead)
        (out.fvu + out.auxk_loss).backward()
    with pytest.raises(AssertionError, match="a dense tensor has"), NoDense(n, m):
        coder(x, dead_mask=dead)


def test_groups_in_their_order_and_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """One latent of each group, group by group, as the host has them; whatever fits into a chunk."""
    coder = made("groupmax sae")
    x, _, dead = data()
    theirs, expected = coder.encode(x), true_derivative(coder, x, None, dead)
    for chunk in (10, 100, 1000, 3000):  # less than a group, some tokens, some groups
        monkeypatch.setattr(_group_max, "CHUNK", chunk)
        with sk.patch(coder):
            mine = coder.encode(x)
            found = passed(coder, x, None, dead)[1]
        torch.testing.assert_close(mine.top_acts, theirs.top_acts)
        positive = theirs.top_acts > 0
        assert torch.equal(mine.top_indices[positive], theirs.top_indices[positive])
        for name, grad in found.items():
            torch.testing.assert_close(grad, expected[name])
    for n in (0, 1):
        with sk.patch(coder):
            assert coder.encode(x[:n]).top_acts.shape == (n, K)


def test_other_activations_and_higher_ranks_are_the_hosts() -> None:
    coder = made()
    coder.cfg.activation = "max"
    with pytest.raises(BackendError, match="activation is 'max', expected 'topk' or 'groupmax'"):
        sk.patch(coder)
    coder.cfg.activation = "topk"
    x, _, _ = data()
    with sk.patch(coder):
        coder.cfg.activation = "max"
        with pytest.raises(ValueError, match="Unknown activation: max"):
            coder(x)
        coder.cfg.activation, coder.cfg.k = "groupmax", 7  # does not divide 200
        with pytest.raises(RuntimeError, match="unflatten"):
            coder(x)
        coder.cfg.activation, coder.cfg.k = "topk", K
        torch.testing.assert_close(
            coder.encode(x[None]).top_acts[0].sort().values, coder.encode(x).top_acts.sort().values
        )


def test_a_patch_comes_and_goes() -> None:
    coder = made(dtype=torch.float32)
    x, _, _ = data(torch.float32)
    handle = sk.patch(coder)
    assert sk.patch(coder) is handle
    assert isinstance(coder, sparsify.SparseCoder)
    coder.to(torch.bfloat16).to(torch.float32)
    coder.load_state_dict(coder.state_dict())
    assert type(pickle.loads(pickle.dumps(coder))) is sparsify.SparseCoder
    patched = coder(x).sae_out
    handle.undo()
    assert type(coder) is sparsify.SparseCoder
    torch.testing.assert_close(coder(x).sae_out, patched)
    with pytest.raises(ArgumentError, match="gradients = 'exakt'"):
        sk.patch(coder, gradients="exakt")
    with pytest.raises(ArgumentError, match=r"unknown option of patch 'sparsify' 'gradient'.*did you mean 'gradients'"):
        sk.patch(coder, gradient="exact")
    assert type(coder) is sparsify.SparseCoder


def test_save_and_load_while_patched(tmp_path: Any) -> None:
    coder = made(dtype=torch.float32)
    x, _, _ = data(torch.float32)
    with sk.patch(coder):
        coder.save_to_disk(tmp_path / "coder")
        expected = coder(x).sae_out
    torch.testing.assert_close(sparsify.SparseCoder.load_from_disk(tmp_path / "coder")(x).sae_out, expected)


def test_training_goes_the_same_way() -> None:
    """Ten steps of Adam with AuxK: the host with exact gradients is the judge."""
    x, _, dead = data()
    losses = {}
    for name in ("theirs", "mine"):
        coder = made()
        coder.encoder.bias.data += 3.0
        optimizer = torch.optim.Adam(coder.parameters(), lr=1e-2)
        handle = sk.patch(coder, gradients="compat") if name == "mine" else None
        for _ in range(10):
            optimizer.zero_grad()
            out = coder(x, dead_mask=dead)
            (out.fvu + out.auxk_loss / 32).backward()
            coder.remove_gradient_parallel_to_decoder_directions()
            optimizer.step()
            coder.set_decoder_norm_to_unit_norm()
        losses[name] = float(out.fvu.detach())
        if handle:
            handle.undo()
    assert losses["mine"] == pytest.approx(losses["theirs"], rel=1e-6)
