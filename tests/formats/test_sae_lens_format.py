"""SAELens's files, made by hand: what they hold is computed as SAELens computes it, or refused by name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from support.formats import D_OUT, D, K, N, Raw, raw, same, top, written, x_rows
from torch import Tensor

import sae_kernels as sk
from sae_kernels.errors import FormatError

NAMES = "cfg.json", "sae_weights.safetensors"
MODERN = {"metadata": {"sae_lens_version": "6.12.0", "hook_name": "blocks.1.hook_mlp_out", "model_name": "gpt2"}}
BASE = {"d_in": D, "d_sae": N, "dtype": "float32", "device": "cuda", **MODERN}


def tensors(architecture: str) -> Raw:
    transcoder = "transcoder" in architecture
    out = D_OUT if transcoder else D
    shapes = [("W_enc", (D, N)), ("W_dec", (N, out)), ("b_dec", (out,))]
    shapes += [(b, (N,)) for b in (("b_gate", "b_mag", "r_mag") if architecture == "gated" else ("b_enc",))]
    if "jumprelu" in architecture:
        shapes.append(("threshold", (N,)))
    if "skip" in architecture:
        shapes.append(("W_skip", (D_OUT, D)))
    return raw(*shapes)


def host(t: Raw, architecture: str, x: Tensor, *, subtract: bool, rescale: bool = False) -> tuple[Tensor, Tensor]:
    t, x = {name: v.double() for name, v in t.items()}, x.double()
    inside = x - t["b_dec"] if subtract else x
    W_dec = t["W_dec"]
    if architecture == "gated":
        mag = torch.relu(inside @ (t["W_enc"] * t["r_mag"].exp()) + t["b_mag"])
        acts = ((inside @ t["W_enc"] + t["b_gate"]) > 0) * mag
    else:
        z = inside @ t["W_enc"] + t["b_enc"]
        if rescale:
            z, W_dec = z * W_dec.norm(dim=1), W_dec / W_dec.norm(dim=1, keepdim=True)
        acts = torch.relu(z)
        if architecture == "topk":
            acts = torch.relu(top(z, K))
        if "jumprelu" in architecture:
            acts = acts * (z > t["threshold"])
        if architecture in ("batchtopk", "matryoshka_batchtopk"):
            acts = acts * (z > t["topk_threshold"])
    out = acts @ W_dec + t["b_dec"]
    return acts, out + x @ t["W_skip"].T if "W_skip" in t else out


KINDS = {
    "standard": ("relu", {}),
    "gated": ("gated", {}),
    "jumprelu": ("jumprelu", {}),
    "topk": ("topk", {"k": K}),
    "transcoder": ("transcoder", {"d_out": D_OUT}),
    "skip_transcoder": ("skip_transcoder", {"d_out": D_OUT}),
    "jumprelu_transcoder": ("jumprelu_transcoder", {"d_out": D_OUT}),
    "jumprelu_skip_transcoder": ("jumprelu_transcoder", {"d_out": D_OUT}),
}


@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("architecture", KINDS)
def test_read_and_written_again(tmp_path: Path, architecture: str, subtract: bool) -> None:
    name, own = KINDS[architecture]
    subtract = subtract and "transcoder" not in architecture
    held = tensors(architecture)
    config = {**BASE, **own, "architecture": architecture, "apply_b_dec_to_input": subtract}
    coder = sk.load(written(tmp_path / "in", config, held, NAMES))
    assert coder.architecture == name
    assert coder.metadata == MODERN["metadata"]
    assert coder.W_enc.is_contiguous()
    x = x_rows()
    acts, out = host(held, architecture, x, subtract=subtract)
    same(coder, x, acts, out)
    sk.save(coder, tmp_path / "out", format="sae_lens")
    again = sk.load(tmp_path / "out")
    assert type(again) is type(coder)
    assert again.metadata == coder.metadata
    torch.testing.assert_close(again(x), coder(x), rtol=1e-6, atol=1e-6)
    sk.save(coder, tmp_path / "native")
    assert sk.load(tmp_path / "native").metadata == coder.metadata


def test_decoder_norms_are_folded(tmp_path: Path) -> None:
    held = tensors("topk")
    config = {**BASE, "k": K, "architecture": "topk", "rescale_acts_by_decoder_norm": True}
    coder = sk.load(written(tmp_path / "in", config, held, NAMES))
    same(coder, x_rows(), *host(held, "topk", x_rows(), subtract=True, rescale=True))
    held["W_dec"][7] = 0
    with pytest.raises(FormatError, match=r"tensor 'W_dec', row 7, has norm 0"):
        sk.load(written(tmp_path / "in", config, held, NAMES))


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize(
    ("architecture", "name"), [("batchtopk", "batch_topk"), ("matryoshka_batchtopk", "matryoshka")]
)
def test_training_coders(tmp_path: Path, architecture: str, name: str, rescale: bool) -> None:
    held = {**tensors("standard"), "topk_threshold": torch.tensor(0.3, dtype=torch.float64)}
    config = {**BASE, "k": float(K), "architecture": architecture, "rescale_acts_by_decoder_norm": rescale}
    if name == "matryoshka":
        config["matryoshka_widths"] = [10, 20]
    coder = sk.load(written(tmp_path / "in", config, held, NAMES))
    assert coder.architecture == name
    same(coder, x_rows(), *host(held, architecture, x_rows(), subtract=True, rescale=rescale))
    if name == "matryoshka":
        assert coder.config.prefixes == (10, 20, N)
    sk.save(coder, tmp_path / "out", format="sae_lens")  # as SAELens does: as jumprelu
    again = sk.load(tmp_path / "out")
    assert again.architecture == "jumprelu"
    torch.testing.assert_close(again(x_rows()), coder(x_rows()), rtol=1e-6, atol=1e-6)


def test_before_6(tmp_path: Path) -> None:
    flat = {"d_in": D, "d_sae": N, "dtype": "torch.float32", "hook_point": "blocks.0.hook_resid_pre", "model_name": "m"}
    held = tensors("standard")
    coder = sk.load(written(tmp_path / "a", {**flat, "normalize_activations": False}, held, NAMES))
    assert coder.metadata == {"hook_name": "blocks.0.hook_resid_pre", "model_name": "m"}
    same(coder, x_rows(), *host(held, "standard", x_rows(), subtract=True))
    old = {**flat, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "apply_b_dec_to_input": False}
    coder = sk.load(written(tmp_path / "b", old, held, NAMES))
    same(coder, x_rows(), *host(held, "topk", x_rows(), subtract=False))
    scale = raw(("s", (N,)))["s"]
    scaled = {**held, "scaling_factor": scale}
    coder = sk.load(written(tmp_path / "c", {**flat, "finetuning_scaling_factor": True}, scaled, NAMES))
    acts, _ = host(held, "standard", x_rows(), subtract=True)
    out = (acts * scale.double()) @ held["W_dec"].double() + held["b_dec"].double()
    same(coder, x_rows(), acts, out)
    with pytest.raises(FormatError, match=r"'scaling_factor' is not 1 throughout"):
        sk.load(written(tmp_path / "d", flat, scaled, NAMES))
    coder = sk.load(written(tmp_path / "e", flat, {**held, "scaling_factor": torch.ones(N)}, NAMES))
    same(coder, x_rows(), *host(held, "standard", x_rows(), subtract=True))


def test_dtypes_and_thresholds(tmp_path: Path) -> None:
    held = tensors("jumprelu")
    held["threshold"][:4] = torch.tensor([0.0, -1.0, 0.25, 1e-30])
    config = {**BASE, "architecture": "jumprelu", "apply_b_dec_to_input": False}
    coder = sk.load(written(tmp_path / "a", config, held, NAMES))
    same(coder, x_rows(), *host(held, "jumprelu", x_rows(), subtract=False))
    theta = coder.theta.detach()
    assert bool((theta >= held["threshold"].clamp_min(0)).all())
    torch.testing.assert_close(theta, held["threshold"].clamp_min(0), rtol=2e-6, atol=0)
    coder = sk.load(written(tmp_path / "b", {**config, "dtype": "bfloat16"}, held, NAMES))
    assert {p.dtype for n, p in coder.named_parameters() if n != "log_theta"} == {torch.bfloat16}
    rounded = held["threshold"].bfloat16().float().clamp_min(0)
    torch.testing.assert_close(coder.theta.detach(), rounded, rtol=1e-5, atol=0)
    log = {**{k: v for k, v in held.items() if k != "threshold"}, "log_threshold": torch.zeros(N)}
    torch.testing.assert_close(sk.load(written(tmp_path / "c", config, log, NAMES)).theta.detach(), torch.ones(N))


def test_a_threshold_that_is_no_number(tmp_path: Path) -> None:
    held = tensors("jumprelu")
    held["threshold"][3] = torch.nan
    with pytest.raises(FormatError, match="a threshold is NaN"):
        sk.load(written(tmp_path, {**BASE, "architecture": "jumprelu"}, held, NAMES))


@pytest.mark.parametrize("how", ["layer_norm", "constant_norm_rescale"])
def test_each_token_normalised(tmp_path: Path, how: str) -> None:
    held = tensors("topk")
    config = {**BASE, "k": K, "architecture": "topk", "normalize_activations": how}
    coder = sk.load(written(tmp_path / "in", config, held, NAMES))
    assert coder.architecture == "token_norm"
    x = 3 * x_rows() + 1
    mean = x.mean(1, keepdim=True) if how == "layer_norm" else torch.zeros(len(x), 1)
    scale = (x - mean).std(1, keepdim=True) if how == "layer_norm" else x.norm(dim=1, keepdim=True) / D**0.5
    inside = (x - mean) / (scale + (1e-5 if how == "layer_norm" else 0))
    acts, out = host(held, "topk", inside, subtract=True)
    same(coder, x, acts, out * scale + mean)
    sk.save(coder, tmp_path / "out", format="sae_lens")
    again = sk.load(tmp_path / "out")
    assert again.config == coder.config
    assert again.metadata == coder.metadata == MODERN["metadata"]
    assert torch.equal(again(x), coder(x))


def test_one_factor_for_all_activations(tmp_path: Path) -> None:
    held = tensors("standard")
    config = {**BASE, "architecture": "standard", "normalize_activations": "expected_average_only_in"}
    path = written(tmp_path / "a", config, held, NAMES)
    with pytest.raises(FormatError, match=r"normalize_activations = 'expected_average_only_in': the factor is in no"):
        sk.load(path)
    (path / "activation_scaler.json").write_text('{"scaling_factor": 2.5}')
    acts, out = host(held, "standard", 2.5 * x_rows(), subtract=True)
    same(sk.load(path), x_rows(), acts, out / 2.5)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"architecture": "temporal"}, "architecture = 'temporal': expected one of standard, gated"),
    ({"d_sae": None}, "no key 'd_sae'"),
    ({"d_sae": N + 1}, f"tensor 'W_enc' has shape ({D}, {N}), expected ({D}, {N + 1})"),
    ({"d_in": "12"}, "d_in = '12': expected a positive integer"),
    ({"dtype": "int8"}, "dtype = 'int8': expected one of float32"),
    ({"architecture": "topk", "k": 0}, "k = 0: expected a positive integer"),
    ({"architecture": "topk", "k": 2.5}, "k = 2.5: expected a positive integer"),
    ({"architecture": "topk", "k": 99}, "k = 99, expected at most d_sae = 40"),
    ({"architecture": "gated"}, "no tensor 'b_gate', expected shape (40,); it holds b_enc"),
    ({"architecture": "transcoder", "d_out": D, "apply_b_dec_to_input": True}, "apply_b_dec_to_input = True"),
    ({"apply_b_dec_to_input": "no"}, "apply_b_dec_to_input = 'no': expected true or false"),
    ({"normalize_activations": "covariance_whitening"}, "normalize_activations = 'covariance_whitening'"),
    ({"reshape_activations": "spiral"}, "reshape_activations = 'spiral'"),
    ({"metadata": {}, "activation_fn_str": "tanh-relu"}, "activation_fn = 'tanh-relu': expected one of relu, topk"),
    ({"metadata": 3}, "metadata = 3: expected an object"),
]


@pytest.mark.parametrize(("change", "words"), BAD)
def test_refused_by_name(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = written(tmp_path, {**BASE, "architecture": "standard", **change}, tensors("standard"), NAMES)
    with pytest.raises(FormatError, match=re.escape(words)) as error:
        sk.load(path)
    assert str(tmp_path) in str(error.value)


def test_damaged_files(tmp_path: Path) -> None:
    config = {**BASE, "architecture": "standard"}
    path = written(tmp_path, config, {**tensors("standard"), "W_more": torch.ones(3)}, NAMES)
    with pytest.raises(FormatError, match=r"tensor 'W_more', \(3,\) float32 cpu, is none that"):
        sk.load(path)
    path = written(tmp_path, config, {**tensors("standard"), "b_enc": torch.ones(N, dtype=torch.int32)}, NAMES)
    with pytest.raises(FormatError, match=r"tensor 'b_enc' is \(40,\) int32 cpu, expected float32"):
        sk.load(path)
    whole = (path / NAMES[1]).read_bytes()
    for left in (0, 7, 100, -1):
        (path / NAMES[1]).write_bytes(whole[:left])
        with pytest.raises(FormatError, match=r"sae_weights.safetensors \(\d+ bytes\): not a readable safetensors"):
            sk.load(path)
    (path / NAMES[1]).unlink()
    with pytest.raises(FormatError, match="no such file"):
        sk.load(path)
    (path / NAMES[0]).write_text("{")
    with pytest.raises(FormatError, match="recognises it"):
        sk.load(path)
    with pytest.raises(FormatError, match=r"cfg.json: "):
        sk.load(path, format="sae_lens")


UNWRITABLE = [
    ("transcoder", {"k": K}, "activation = 'topk'"),
    ("crosscoder", {"sparsity_coefficient": 1.0, "n_layers": 2}, "architecture 'crosscoder'"),
    ("batch_topk", {"k": K}, "its running threshold is not set yet"),
]


@pytest.mark.parametrize(("name", "config", "words"), UNWRITABLE)
def test_what_it_cannot_hold(tmp_path: Path, name: str, config: dict[str, Any], words: str) -> None:
    coder = sk.create(name, d_in=D, d_sae=N, **config)
    with pytest.raises(FormatError, match=f"format 'sae_lens' cannot hold this '{name}': {words}"):
        sk.save(coder, tmp_path / "out", format="sae_lens")
    assert not (tmp_path / "out").exists()
