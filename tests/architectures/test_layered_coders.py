"""What surrounds the losses of ReLU transcoders, crosscoder and clt: weights at the start, codes, folding, files,
learning."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from support.compare import assert_close
from support.planted import toy
from torch import Tensor

import sae_kernels as sk
from bench import cases
from sae_kernels.architectures._affine import Affine
from sae_kernels.architectures._layers import merged, split
from sae_kernels.architectures.clt import CrossLayerTranscoder
from sae_kernels.architectures.crosscoder import Crosscoder
from sae_kernels.errors import ConfigError, IndexRangeError, ShapeError

L, D, D_OUT, M, N = 3, 12, 15, 42, 16
COMMON: dict[str, Any] = {"d_in": D, "d_sae": M, "sparsity_coefficient": 0.1}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "transcoder": ("transcoder", {"activation": "relu", "d_target": D_OUT}),
    "skip_transcoder": ("skip_transcoder", {"activation": "relu", "d_target": D_OUT}),
    "crosscoder": ("crosscoder", {"n_layers": L}),
    "clt": ("clt", {"n_layers": L, "d_target": D_OUT}),
}


def made(kind: str, **config: Any) -> Any:
    """With weights that no initialisation has."""
    name, own = KINDS[kind]
    coder = sk.create(name, **{**COMMON, **own, **config}, seed=0)
    for i, (key, parameter) in enumerate(coder.named_parameters()):
        parameter.data = cases.normal(*parameter.shape, seed=40 + i, scale=0.5)
        if key == "log_theta":
            parameter.data -= 1
    return coder


# Configurations

REFUSED = {
    "topk without k": ("transcoder", {"d_in": 8, "d_sae": 20}, "k = None, expected a positive integer"),
    "relu with k": ("transcoder", {**COMMON, "activation": "relu", "k": 3}, "k = 3 with activation = 'relu'"),
    "relu with Multi-TopK": (
        "skip_transcoder",
        {**COMMON, "activation": "relu", "multi_topk": True},
        "multi_topk = True with activation = 'relu', which has no multi_topk",
    ),
    "relu without a coefficient": (
        "transcoder",
        {"d_in": 8, "d_sae": 20, "activation": "relu"},
        "sparsity_coefficient = None, expected a number >= 0",
    ),
    "topk with a coefficient": (
        "transcoder",
        {**COMMON, "k": 3},
        "sparsity_coefficient = 0.1 with activation = 'topk'",
    ),
    "activation": (
        "transcoder",
        {**COMMON, "activation": "rellu"},
        "unknown value of activation 'rellu': did you mean",
    ),
    "layers missing": ("crosscoder", COMMON, "CrosscoderConfig: missing n_layers"),
    "layers 0": ("crosscoder", {**COMMON, "n_layers": 0}, "n_layers = 0, expected a positive integer"),
    "d_in": ("crosscoder", {**COMMON, "n_layers": 5}, "d_in = 12, expected a multiple of n_layers = 5"),
    "d_sae": ("clt", {**COMMON, "n_layers": 4}, "d_sae = 42, expected a multiple of n_layers = 4"),
    "d_target": (
        "clt",
        {**COMMON, "n_layers": 3, "d_target": 16},
        "d_target = 16, expected a multiple of n_layers = 3",
    ),
    "bandwidth 0": ("clt", {**COMMON, "n_layers": 3, "bandwidth": 0}, "bandwidth = 0, expected a number > 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    name, config, words = REFUSED[case]
    with pytest.raises(ConfigError, match=re.escape(words)):
        sk.create(name, **config)


def test_the_two_transcoders_differ_in_name_and_default_alone() -> None:
    plain = sk.create("transcoder", d_in=8, d_sae=20, k=3, skip=True, seed=0)
    skip = sk.create("skip_transcoder", d_in=8, d_sae=20, k=3, seed=0)
    assert plain.config.to_dict() == skip.config.to_dict()
    assert (skip.architecture, plain.architecture) == ("skip_transcoder", "transcoder")
    assert sk.create("skip_transcoder", d_in=8, d_sae=20, k=3, skip=False).W_skip is None  # pyright: ignore
    x, y = cases.normal(N, 8), cases.normal(N, 8, seed=1)
    assert torch.equal(plain.loss(x, y).total, skip.loss(x, y).total)
    assert not skip.W_dec.any()


# At the start


def test_initial_weights_of_a_relu_transcoder() -> None:
    coder = sk.create("skip_transcoder", **COMMON, activation="relu", d_target=D_OUT, seed=0)
    assert_close(coder.W_dec.detach().norm(dim=1), torch.ones(M, dtype=torch.float64))
    assert coder.unit_norm_rows == ("W_dec",)
    assert sk.create("transcoder", **COMMON, activation="relu", normalize_decoder=False).unit_norm_rows == ()
    x, y = cases.normal(200, D) + 5, cases.normal(200, D_OUT, seed=1) + 3
    coder.initialise(x, y)
    assert_close(coder.b_dec.detach(), y.double().mean(0))
    assert coder.encode(x).l0().double().mean() == pytest.approx(M * 0.05)


def test_initial_weights_of_a_crosscoder() -> None:
    coder = sk.create("crosscoder", **COMMON, n_layers=L, seed=0)
    assert isinstance(coder, Crosscoder)
    assert torch.equal(coder.W_enc, coder.W_dec)
    assert_close(coder.decoder_norms(), torch.full((M, L), 0.1, dtype=torch.float64))
    x = cases.normal(200, D) + 5
    coder.initialise(x, x)
    assert_close(coder.b_dec.detach(), x.double().mean(0))
    assert coder.encode(x).l0().double().mean() == pytest.approx(M * 0.05)


def test_initial_weights_of_a_clt() -> None:
    coder = sk.create("clt", **COMMON, n_layers=L, d_target=D_OUT, threshold_init=0.5, seed=0)
    assert isinstance(coder, CrossLayerTranscoder)
    scales = torch.tensor([0.1, 1.0, 30.0]).repeat_interleave(D // L)
    x, y = (cases.normal(2000, D) + 5) * scales, cases.normal(2000, D_OUT, seed=1) + 3
    coder.initialise(x, y)
    torch.testing.assert_close(coder.input_rms, torch.tensor([0.1, 1.0, 30.0]), rtol=0.05, atol=0)
    torch.testing.assert_close(coder.theta, 0.5 * coder.input_rms.repeat_interleave(M // L))
    fired = torch.stack([part.l0().double().mean() for part in split(coder.encode(x), L)]) * L / M
    torch.testing.assert_close(fired, torch.full((L,), 0.31).double(), rtol=0.1, atol=0)  # P(z > σ/2)
    assert_close(coder(x).detach(), y.double().mean(0).expand(2000, -1))
    assert [tuple(W.shape) for W in coder.W_dec_from] == [(14, 15), (14, 10), (14, 5)]


def test_relative_norms() -> None:
    coder = made("crosscoder", n_layers=2)
    with torch.no_grad():
        coder.layer_decoders()[0, 1], coder.layer_decoders()[1] = 0.0, 0.0
    relative, W = coder.relative_decoder_norms(), coder.W_dec.detach().double()
    assert relative[0].tolist() == [1, 0]
    assert relative[1].tolist() == [0, 0]
    first, second = W[2:, :6].norm(dim=1), W[2:, 6:].norm(dim=1)
    assert_close(relative[2:], torch.stack([first, second], 1) / (first + second)[:, None])


# Codes


def test_layers_of_codes_come_apart_and_together_again() -> None:
    acts = torch.relu(cases.normal(N, M)).mul(torch.rand(N, M, generator=cases.generator(3)) < 0.3)
    acts[3] = 0
    codes = sk.SparseCodes.from_dense(acts)
    parts = split(codes, L)
    assert all(torch.equal(part.dense(), dense) for part, dense in zip(parts, acts.chunk(L, dim=1), strict=True))
    again = merged(parts, (4, 4))
    assert torch.equal(again.dense(), acts.view(4, 4, M))
    assert torch.equal(again.indices, codes.indices), "ascending in a row, as they were"
    fixed = sk.SparseCodes(torch.ones(2, 3), torch.tensor([[41, 0, 14], [13, 13, 28]]).int(), M)
    assert [part.dense().sum(1).tolist() for part in split(fixed, L)] == [[1, 2], [1, 0], [1, 1]]
    with pytest.raises(IndexRangeError, match=re.escape("outside [0, 42)")):
        split(sk.SparseCodes(torch.ones(1, 1), torch.tensor([[42]]).int(), M), L)


def test_a_clt_decodes_any_codes() -> None:
    """Fixed width, edited, in any order; and its latents write to no layer before their own."""
    coder = made("clt")
    codes = sk.SparseCodes(torch.tensor([[2.0, -1.0, 0.0]]), torch.tensor([[30, 3, 20]]).int(), M)
    expected = coder.b_dec + torch.cat([2 * coder.decoder(30, layer) - coder.decoder(3, layer) for layer in range(L)])
    assert_close(coder.decode(codes).detach(), expected.detach().double()[None])
    assert not coder.decoder(30, 1).any()
    assert coder.decoder(30, 2).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_leading_shapes_and_dtypes(kind: str, dtype: torch.dtype) -> None:
    coder = made(kind).to(dtype)
    for lead in ((2, 4), (1,), (), (0,)):
        x = cases.normal(*lead, D).to(dtype)
        codes, y = coder.encode(x), coder(x)
        assert (codes.lead_shape, codes.values.dtype) == (lead, dtype)
        assert (y.shape, y.dtype) == ((*lead, coder.d_out), dtype)
    before = coder.b_dec.clone()
    coder(cases.normal(1, D).to(dtype))
    assert torch.equal(coder.b_dec, before), "decoding one token wrote into b_dec"
    with pytest.raises(ShapeError, match=re.escape("expected (…, 12)")):
        coder.encode(x[..., :11])
    thresholds = [p.dtype for name, p in coder.named_parameters() if name == "log_theta"]
    assert thresholds == ([torch.float64 if dtype == torch.float64 else torch.float32] if kind == "clt" else [])


def test_a_stream_gives_what_forward_gives() -> None:
    coder, x = made("clt"), cases.normal(N, D)
    stream = coder.stream()
    found = []
    for layer, part in enumerate(x.chunk(L, dim=1)):
        stream.read(layer, part)
        found.append(stream.write(layer))
    torch.testing.assert_close(torch.cat(found, dim=1), coder(x).detach())


# Folding and files


def affine(d: int, scales: list[float], seed: int) -> Affine:
    return Affine(3 * cases.normal(d, seed=seed), torch.tensor(scales).repeat_interleave(d // len(scales)))


@pytest.mark.parametrize("scales", [[0.37], [0.2, 1.5, 4.0]], ids=["one scale", "a scale a layer"])
@pytest.mark.parametrize("kind", KINDS)
def test_folded_weights_read_and_give_raw_activations(kind: str, scales: list[float]) -> None:
    coder = made(kind).double()
    input = affine(D, scales, 1)
    target = input if kind == "crosscoder" else affine(D_OUT, scales, 5)
    x = (3 + 2 * cases.normal(N, D, seed=9)).double()
    before_codes, before = coder.encode(input.apply(x)), target.invert(coder(input.apply(x)))
    norms = [W.detach().norm(dim=1) for name, W in coder.named_parameters() if name.startswith("W_dec")]
    coder.fold(input, target)
    assert_close(coder(x).float().detach(), before.detach(), factor=50)
    codes = coder.encode(x)
    torch.testing.assert_close(codes.fired(), before_codes.fired())
    factor = 1.0 if len(scales) > 1 else 1 / scales[0]
    torch.testing.assert_close(codes.values, before_codes.values * factor, rtol=1e-5, atol=1e-7)
    if len(scales) == 1:
        after = [W.detach().norm(dim=1) for name, W in coder.named_parameters() if name.startswith("W_dec")]
        torch.testing.assert_close(after, norms)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    coder = made(kind)
    coder.initialise(cases.normal(N, D), cases.normal(N, coder.d_out, seed=1))
    coder.to(dtype)
    sk.save(coder, tmp_path / "coder")
    loaded = sk.load(tmp_path / "coder")
    assert type(loaded) is type(coder)
    assert loaded.config == coder.config
    state, expected = loaded.state_dict(), coder.state_dict()
    assert state.keys() == expected.keys()
    assert all(
        torch.equal(state[name], tensor) and state[name].dtype == tensor.dtype for name, tensor in expected.items()
    )
    x = cases.normal(N, D, seed=3).to(dtype)
    assert torch.equal(loaded(x), coder(x))


def test_transcoders_saved_before_there_were_activations_still_load(tmp_path: Path) -> None:
    import json

    coder = sk.create("transcoder", d_in=8, d_sae=20, k=3, skip=True, seed=0)
    sk.save(coder, tmp_path / "coder")
    file = tmp_path / "coder" / "config.json"
    saved = json.loads(file.read_text())
    old = {"d_in", "d_sae", "k", "k_aux", "auxk_coefficient", "normalize_decoder", "d_target", "skip"}
    saved["config"] = {key: value for key, value in saved["config"].items() if key in old}
    file.write_text(json.dumps(saved))
    loaded = sk.load(tmp_path / "coder")
    assert loaded.config == coder.config
    assert torch.equal(loaded.W_enc, coder.W_enc)


# Learning


def planted(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Three layers that show the same sparse features in other directions; targets that each layer and those before it
    decide."""
    x = toy(n, d=D, features=18, seed=seed)
    mix = cases.normal(D, D_OUT, seed=77, scale=0.3)
    y = torch.cat(
        [(x[:, : 4 * (layer + 1)] @ mix[: 4 * (layer + 1)])[:, 5 * layer : 5 * layer + 5] for layer in range(L)], 1
    )
    return x, y.relu()


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("kind", "coefficient", "most_fvu", "most_l0"),
    [
        ("transcoder", 0.02, 0.05, 12),
        ("skip_transcoder", 0.02, 0.05, 7),
        ("crosscoder", 0.1, 0.08, 14),
        ("clt", 0.02, 0.2, 5),
    ],
)
def test_it_learns_and_becomes_sparse(kind: str, coefficient: float, most_fvu: float, most_l0: float) -> None:
    name, config = KINDS[kind]
    config = {**COMMON, **config, "sparsity_coefficient": coefficient, "sparsity_warmup_steps": 50}
    coder = sk.create(name, **config, **({} if kind == "clt" else {"initial_density": 0.5}), seed=0)

    def batch(n: int, seed: int) -> tuple[Tensor, Tensor]:
        x, y = planted(n, seed)
        return (x, x) if kind == "crosscoder" else (x, y)

    held_out, target = batch(512, 1000)

    def measure() -> tuple[float, float]:
        with torch.no_grad():
            found = coder.reconstruct(codes := coder.encode(held_out), held_out)
        error = (target - found).square().sum() / (target - target.mean(0)).square().sum()
        return error.item(), codes.l0().double().mean().item()

    coder.initialise(*batch(256, 0))
    before, l0_before = measure()
    theta = coder.theta.detach().clone() if isinstance(coder, CrossLayerTranscoder) else None
    optimiser = torch.optim.Adam(coder.parameters(), lr=1e-2)
    for step in range(200):
        optimiser.zero_grad()
        coder.on_step(step, 200)
        coder.loss(*batch(256, 10 + 2 * step)).total.backward()
        coder.before_step()
        optimiser.step()
        coder.after_step()
    after, l0 = measure()
    assert l0_before == pytest.approx(M * (0.38 if kind == "clt" else 0.5), rel=0.2)  # P(z > 0.3 σ); as asked for
    assert before > 0.9
    assert after < most_fvu, (after, l0)
    assert l0 < most_l0, (after, l0)
    if theta is not None:
        assert not torch.allclose(coder.theta, theta, rtol=0.05), "thresholds stood still"  # pyright: ignore
