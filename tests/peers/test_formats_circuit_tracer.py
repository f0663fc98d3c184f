"""circuit-tracer's files, and Gemma Scope's as it reads them: loaded there and here, they compute the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import save_file
from support.peer import peer

import sae_kernels as sk
from bench import cases

pytestmark = pytest.mark.peers
single = peer("circuit_tracer.transcoder.single_layer_transcoder", "circuit-tracer")
cross = peer("circuit_tracer.transcoder.cross_layer_transcoder", "circuit-tracer")
functions = peer("circuit_tracer.transcoder.activation_functions", "circuit-tracer")

D, N, L, ROWS = 12, 48, 3, 64
CPU = {"device": torch.device("cpu"), "dtype": torch.float32}
TOLERANCE = {"atol": 2e-5, "rtol": 2e-5}


def shaken(module: Any) -> Any:
    with torch.no_grad():
        for i, (name, p) in enumerate(module.named_parameters()):
            new = cases.normal(*p.shape, seed=30 + i, scale=0.4)
            p.copy_(new.abs() if "threshold" in name else new)
    return module


def compare(mine: sk.SparseCoder, host: Any) -> None:
    x = cases.normal(ROWS, D, seed=3)
    torch.testing.assert_close(mine.encode(x).dense(), host.encode(x), **TOLERANCE)
    torch.testing.assert_close(mine(x), host(x), **TOLERANCE)


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("jump", [True, False])
def test_transcoders(tmp_path: Path, jump: bool, skip: bool) -> None:
    function = functions.JumpReLU(torch.zeros(N)) if jump else torch.nn.functional.relu
    host = shaken(single.SingleLayerTranscoder(D, N, function, 0, skip_connection=skip, **CPU))
    host.to_safetensors(str(tmp_path / "layer_0.safetensors"))
    mine = sk.load(tmp_path)
    compare(mine, host)
    sk.save(mine, tmp_path / "ours", format="circuit_tracer")
    for lazy in (True, False):
        again = single.load_relu_transcoder(
            str(tmp_path / "ours" / "layer_0.safetensors"), 0, lazy_encoder=lazy, lazy_decoder=lazy, **CPU
        )
        compare(mine, again)
    import yaml

    config = yaml.safe_load((tmp_path / "ours" / "config.yaml").read_text())
    assert config["model_kind"] == "transcoder_set"
    hooks = {key: config[key] for key in ("feature_input_hook", "feature_output_hook")}
    found = single.load_transcoder_set({0: str(tmp_path / "ours" / "layer_0.safetensors")}, "mine", **hooks, **CPU)
    compare(mine, found[0])


def compare_layers(mine: sk.SparseCoder, host: Any) -> None:
    x = cases.normal(ROWS, L * D, seed=3)
    acts = host.encode(x.unflatten(1, (L, D)).transpose(0, 1))
    torch.testing.assert_close(mine.encode(x).dense(), acts.transpose(0, 1).flatten(1), **TOLERANCE)
    inputs = x.unflatten(1, (L, D)).transpose(0, 1)
    out = host.decode(acts, inputs if host.W_skip is not None else None)
    torch.testing.assert_close(mine(x), out.transpose(0, 1).flatten(1), **TOLERANCE)


@pytest.mark.parametrize("function", ["jump_relu", "relu"])
def test_cross_layer_transcoders(tmp_path: Path, function: str) -> None:
    host = shaken(cross.CrossLayerTranscoder(L, N, D, activation_function=function, lazy_decoder=False, **CPU))
    host.to_safetensors(str(tmp_path / "theirs"))
    mine = sk.load(tmp_path / "theirs")
    compare_layers(mine, host)
    sk.save(mine, tmp_path / "ours", format="circuit_tracer")
    again = cross.load_clt(str(tmp_path / "ours"), lazy_decoder=False, **CPU)
    compare_layers(mine, again)


def test_gemma_scope(tmp_path: Path) -> None:
    shapes = {"W_enc": (D, N), "b_enc": (N,), "threshold": (N,), "W_dec": (N, D), "b_dec": (D,)}
    held = {name: cases.normal(*s, seed=i, scale=0.4).abs() for i, (name, s) in enumerate(shapes.items())}
    held["b_enc"] -= 3
    numpy.savez(tmp_path / "params.npz", **{name: t.numpy() for name, t in held.items()})
    compare(sk.load(tmp_path), single.load_gemma_scope_transcoder(str(tmp_path / "params.npz"), 0, **CPU))


@pytest.mark.parametrize("skip", [True, False])
def test_gemma_scope_2(tmp_path: Path, skip: bool) -> None:
    shapes = {"w_enc": (D, N), "b_enc": (N,), "threshold": (N,), "w_dec": (N, D), "b_dec": (D,)}
    shapes.update({"affine_skip_connection": (D, D)} if skip else {})
    held = {name: cases.normal(*s, seed=i, scale=0.4) for i, (name, s) in enumerate(shapes.items())}
    held["threshold"] = held["threshold"].abs()
    save_file(held, tmp_path / "params.safetensors")
    host = single.load_gemma_scope_2_transcoder(str(tmp_path / "params.safetensors"), 0, **CPU)
    compare(sk.load(tmp_path), host)


@pytest.mark.parametrize("skip", [True, False])
def test_gemma_scope_2_cross_layer(tmp_path: Path, skip: bool) -> None:
    """circuit-tracer 0.5.0 leaves out the last of the paths it is given: one more is named."""
    paths = {}
    for i in range(L):
        shapes = {"w_enc": (D, N), "b_enc": (N,), "threshold": (N,), "w_dec": (N, L, D), "b_dec": (D,)}
        shapes.update({"affine_skip_connection": (D, D)} if skip else {})
        held = {name: cases.normal(*s, seed=9 * i + j, scale=0.4) for j, (name, s) in enumerate(shapes.items())}
        held["threshold"] = held["threshold"].abs()
        held["w_dec"][:, :i] = 0
        paths[i] = str(tmp_path / f"params_layer_{i}.safetensors")
        save_file(held, paths[i])
    host = cross.load_gemma_scope_2_clt({**paths, L: paths[L - 1]}, **CPU)
    compare_layers(sk.load(tmp_path), host)
