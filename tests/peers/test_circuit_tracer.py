"""circuit-tracer's transcoders, patched against themselves."""

from __future__ import annotations

import contextlib
import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from support.no_dense import NoDense
from support.peer import D, all_close, assert_classes_are_listed, data, gradients, peer, plain_and_patched
from torch import Tensor, nn

import sae_kernels as sk
from sae_kernels.errors import BackendError
from sae_kernels.patches import circuit_tracer as ours
from sae_kernels.patches._acts import codes_of

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning"),  # of the host's own sparse acts
]
peer("circuit_tracer", "circuit-tracer")
host = peer("circuit_tracer.transcoder.single_layer_transcoder", "circuit-tracer")
activations = peer("circuit_tracer.transcoder.activation_functions", "circuit-tracer")

M, K, N = 96, 6, 40
KINDS = ["relu", "relu module", "topk", "jumprelu", "jumprelu scalar"]


class Copied(nn.ReLU):
    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z).clone()


def activation(kind: str, m: int = M, dtype: torch.dtype = torch.float64) -> Any:
    if kind == "relu":
        return nn.functional.relu
    if kind == "relu module":
        return nn.ReLU()
    if kind == "topk":
        return activations.TopK(K)
    theta = torch.tensor(0.3) if "scalar" in kind else torch.rand(m, generator=torch.Generator().manual_seed(4)) - 0.3
    made = activations.JumpReLU(theta.to(dtype), 0.1)
    made.threshold.requires_grad_(False)
    return made


def made(kind: str, dtype: torch.dtype = torch.float64, m: int = M, shift: float = 0.0, **keys: Any) -> Any:
    coder = host.SingleLayerTranscoder(
        D, m, activation(kind, m, dtype), 0, dtype=dtype, device=torch.device("cpu"), **keys
    )
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in coder.named_parameters():
            if "threshold" not in name:
                parameter.copy_(0.4 * torch.randn(parameter.shape, generator=random, dtype=torch.float64))
        coder.b_enc.sub_(shift)
    return coder


def learned(coder: nn.Module) -> list[Tensor]:
    return [parameter for parameter in coder.parameters() if parameter.requires_grad]


def test_the_classes_that_are_listed_are_those_that_are_known() -> None:
    assert_classes_are_listed("circuit_tracer", ours.CLASSES)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("lead", [(N,), (4, 5), (1,), ()], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_forward_encode_decode_and_every_gradient(kind: str, lead: tuple[int, ...], skip: bool) -> None:
    coder = made(kind, skip_connection=skip)

    def run() -> list[Tensor]:
        x = (data(*lead) if lead else data(1)[0]).requires_grad_()
        inputs = [x, *learned(coder)]
        out = coder(x)
        results = [out, *gradients(out, inputs)]
        acts = coder.encode(x)
        assert (codes_of(acts) is None) == (type(coder) is host.SingleLayerTranscoder)
        out = coder.decode(acts, x)
        (attributed,) = torch.autograd.grad(out.pow(2).sum(), acts, retain_graph=True)
        results += [acts, out, attributed, *gradients([acts, out], inputs)]
        return [*results, coder.encode(x, apply_activation_function=False)]

    theirs, mine = plain_and_patched(coder, run)
    all_close(mine, theirs)


@pytest.mark.parametrize("zeroed", [slice(0, 1), slice(0, 0), slice(2, 7), slice(None), slice(-3, None)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_sparse_acts_are_the_hosts_entry_by_entry(kind: str, zeroed: slice) -> None:
    coder = made(kind, skip_connection=True)
    plain, found = coder.activation_function, {}
    for who in ("theirs", "mine"):
        if kind.startswith("relu"):  # the host writes into what ReLU's backward needs: with a copy it is the judge
            del coder.activation_function  # which may be a function or a module
            coder.activation_function = plain if who == "mine" else Copied()
        handle = sk.patch(coder) if who == "mine" else None
        x = data().requires_grad_()
        acts, encoders = coder.encode_sparse(x, zeroed)
        out, decoders = coder.decode_sparse(acts, x)
        assert acts.is_coalesced()
        assert acts.shape == (N, M)
        grads = gradients([encoders, out, decoders, acts.values()], [x, *learned(coder)])
        found[who] = [acts.indices(), acts.values(), encoders, out, decoders, *grads]
        if handle:
            handle.undo()
    for mine, theirs in zip(found["mine"], found["theirs"], strict=True):
        torch.testing.assert_close(mine, theirs)


def test_entries_that_somebody_set_to_zero() -> None:
    """They have a gradient; entries that are not coalesced are refused, as by the host."""
    coder = made("jumprelu")
    acts = coder.encode_sparse(data())[0].detach()
    zeroed = torch.where(torch.arange(acts.values().numel()) % 3 == 0, 0.0, acts.values())

    def run() -> list[Tensor]:
        values = zeroed.clone().requires_grad_()
        given = torch.sparse_coo_tensor(acts.indices(), values, acts.shape, is_coalesced=True, check_invariants=False)
        outs = coder.decode_sparse(given)
        return [*outs, *gradients(outs, [values, coder.W_dec, coder.b_dec])]

    theirs, mine = plain_and_patched(coder, run)
    all_close(mine, theirs)
    loose = torch.sparse_coo_tensor(acts.indices(), zeroed, acts.shape, check_invariants=False)
    for patched in (False, True):
        both = sk.patch(coder) if patched else contextlib.nullcontext()
        with both, pytest.raises(RuntimeError, match="coalesced"):
            coder.decode_sparse(loose)


def test_latents_in_any_order_are_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they come from backends that do not sort."""
    coder = made("topk")
    expected, rows = coder.encode_sparse(data())
    plain = ours.encode

    def shuffled(*args: Any) -> sk.SparseCodes:
        codes = plain(*args)
        return sk.SparseCodes(codes.values.flip(-1), codes.indices.flip(-1), codes.d_sae)

    monkeypatch.setattr(ours, "encode", shuffled)
    with sk.patch(coder):
        acts, mine = coder.encode_sparse(data())
    assert torch.equal(acts.indices(), expected.indices())
    torch.testing.assert_close(acts.values(), expected.values())
    torch.testing.assert_close(mine, rows)


def test_a_threshold_that_learns_is_the_hosts() -> None:
    coder = made("jumprelu")
    coder.activation_function.threshold.requires_grad_()
    grads = {}
    for who in ("theirs", "mine"):
        handle = sk.patch(coder) if who == "mine" else None
        grads[who] = gradients([coder(data())], learned(coder))
        if handle:
            with torch.no_grad():
                assert codes_of(coder.encode(data())) is not None
            assert codes_of(coder.encode(data())) is None
            handle.undo()
    torch.testing.assert_close(grads["mine"], grads["theirs"])
    assert float(grads["theirs"][-1].abs().max()) > 0


def test_hooks_on_the_activation_are_heard() -> None:
    coder = made("jumprelu")
    for patched in (False, True):
        handle = sk.patch(coder) if patched else None
        seen: list[Tensor] = []
        hook = coder.activation_function.register_forward_hook(lambda module, args, out, seen=seen: seen.append(out))
        coder(data())
        coder.encode(data())
        coder.encode_sparse(data())
        hook.remove()
        assert len(seen) == 3
        if handle:
            handle.undo()


@pytest.mark.parametrize("lazy", [(True, True), (True, False), (False, True)], ids=str)
def test_weights_that_stay_on_disk(tmp_path: Path, lazy: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = made("jumprelu", torch.float32)
    path = str(tmp_path / "layer_0.safetensors")
    whole.to_safetensors(path)
    load = {"lazy_encoder": lazy[0], "lazy_decoder": lazy[1], "device": torch.device("cpu")}
    coder = host.load_relu_transcoder(path, 0, **load)
    x = data(dtype=torch.float32)
    opened = []
    really = host.safe_open
    monkeypatch.setattr(host, "safe_open", lambda *args, **keys: opened.append(args) or really(*args, **keys))
    found = {}
    for who in ("theirs", "mine"):
        handle = sk.patch(coder) if who == "mine" else None
        opened.clear()
        with torch.no_grad():
            acts, encoders = coder.encode_sparse(x)
            found[who] = [coder(x), coder.decode(coder.encode(x)), acts.values(), encoders, *coder.decode_sparse(acts)]
        found[f"{who} opened"] = len(opened)
        if handle:
            assert "W_enc" not in coder._parameters or not lazy[0]
            handle.undo()
    torch.testing.assert_close(found["mine"], found["theirs"])
    assert found["mine opened"] == found["theirs opened"] > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_dtypes(kind: str, dtype: torch.dtype) -> None:
    coder = made(kind, dtype, skip_connection=True)
    x = data(2000, dtype=dtype)
    truth = made(kind, torch.float64, skip_connection=True)
    truth.load_state_dict({key: value.double() for key, value in coder.state_dict().items()})
    with torch.no_grad():
        exact, theirs, (acts, _) = truth(x.double()), coder(x), coder.encode_sparse(x)
        with sk.patch(coder):
            mine, (my_acts, encoders) = coder(x), coder.encode_sparse(x)
            assert coder.encode(x).dtype == coder.encode(x.float()).dtype == dtype
    assert mine.dtype == theirs.dtype
    assert my_acts.dtype == acts.dtype == encoders.dtype == dtype
    rms = lambda tensor: float((tensor.double() - exact).square().mean().sqrt())  # noqa: E731
    assert rms(mine) <= 1.5 * rms(theirs) + 1e-6


def test_a_set_of_transcoders() -> None:
    coders = {layer: made("jumprelu") for layer in range(3)}
    group = host.TranscoderSet(coders, "hook_resid_mid", "hook_mlp_out")
    x = data(3, N)
    theirs = group.compute_attribution_components(x)
    encoded = group.encode(x)
    first = sk.patch(group[0])
    handle = sk.patch(group)
    mine = group.compute_attribution_components(x)
    torch.testing.assert_close(group.encode(x), encoded)
    torch.testing.assert_close(group.decode(group.encode(x), x), group.decode(encoded, x))
    handle.undo()
    assert [type(each) is host.SingleLayerTranscoder for each in group] == [False, True, True], (
        "the first was by itself"
    )
    first.undo()
    assert mine.keys() == theirs.keys()
    for name in theirs:
        if theirs[name].is_sparse:
            assert torch.equal(mine[name].indices(), theirs[name].indices())
            torch.testing.assert_close(mine[name].values(), theirs[name].values())
        else:
            torch.testing.assert_close(mine[name], theirs[name])


@pytest.mark.parametrize("kind", KINDS)
def test_no_dense_tensor(kind: str) -> None:
    n, m = 1024, 9000
    coder = made(kind, torch.float32, m, shift=6.0)
    x = data(n, dtype=torch.float32).requires_grad_()
    with sk.patch(coder), sk.use("cpu"), NoDense(n, m):
        coder(x).square().sum().backward()
        acts, _ = coder.encode_sparse(x)
        coder.decode_sparse(acts)[0].square().sum().backward()
    assert acts.values().numel() > n // 2
    with pytest.raises(AssertionError, match="a dense tensor has"), NoDense(n, m):
        coder(x)


def test_a_patch_comes_and_goes() -> None:
    coder = made("jumprelu", torch.float32)
    cls, x = host.SingleLayerTranscoder, data(dtype=torch.float32)
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


def test_it_declines_what_it_does_not_know() -> None:
    coder = made("relu")
    coder.activation_function = torch.tanh
    with pytest.raises(BackendError, match="activation_function is tanh, expected ReLU, JumpReLU or TopK"):
        sk.patch(coder)
    coder.activation_function = nn.GELU()
    group = host.TranscoderSet({0: made("relu"), 1: coder}, "a", "b")
    with pytest.raises(BackendError, match="layer 1: activation_function is a GELU"):
        sk.patch(group)
    assert type(group[0]) is host.SingleLayerTranscoder
    with pytest.raises(BackendError, match="Linear is none of SingleLayerTranscoder, TranscoderSet"):
        sk.patch(nn.Linear(2, 2))
