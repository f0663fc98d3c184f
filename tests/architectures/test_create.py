"""`create`: what it makes, and what it refuses."""

from __future__ import annotations

import re

import pytest
import torch

import sae_kernels as sk
from sae_kernels.architectures import coder_class, coder_config
from sae_kernels.errors import ConfigError, ShapeError, UnknownNameError

GOOD = {"d_in": 8, "d_sae": 20, "k": 3}


@pytest.mark.parametrize("name", ["topk", "transcoder"])
def test_a_coder_by_name(name: str) -> None:
    coder = sk.create(name, **GOOD)
    assert isinstance(coder, sk.SparseCoder)
    assert type(coder) is coder_class(name)
    assert (coder.architecture, coder.d_in, coder.d_out, coder.d_sae) == (name, 8, 8, 20)
    assert coder.W_enc.shape == coder.W_dec.shape == (20, 8)
    assert "k=3" in repr(coder)
    assert coder_config(name, **GOOD) == coder.config
    assert type(coder.config).build(**coder.config.to_dict()) == coder.config


def test_dtype_and_device() -> None:
    coder = sk.create("topk", **GOOD, dtype=torch.float16, device="meta")
    assert {(p.dtype, p.device.type) for p in coder.parameters()} == {(torch.float16, "meta")}


REFUSED = {
    "d_in 0": ({"d_in": 0}, "d_in = 0, expected a positive integer"),
    "d_sae a float": ({"d_sae": 20.0}, "d_sae = 20.0, expected a positive integer"),
    "d_sae True": ({"d_sae": True}, "d_sae = True, expected a positive integer"),
    "k 0": ({"k": 0}, "k = 0, expected a positive integer"),
    "k 2.5": ({"k": 2.5}, "k = 2.5, expected a positive integer"),
    "k text": ({"k": "3"}, "k = '3', expected a positive integer"),
    "k beyond": ({"k": 21}, "k = 21, expected at most d_sae = 20"),
    "k_aux beyond": ({"k_aux": 21}, "k_aux = 21, expected at most d_sae = 20"),
    "k_aux 0": ({"k_aux": 0}, "k_aux = 0, expected a positive integer"),
    "negative coefficient": ({"auxk_coefficient": -1.0}, "auxk_coefficient = -1.0, expected a number >= 0"),
    "coefficient NaN": ({"auxk_coefficient": float("nan")}, "auxk_coefficient = nan, expected a number >= 0"),
    "coefficient text": ({"auxk_coefficient": "1"}, "auxk_coefficient = '1', expected a number >= 0"),
    "normalize text": ({"normalize_decoder": "no"}, "normalize_decoder = 'no', expected true or false"),
    "misspelt": ({"kaux": 3}, "unknown key of TopKConfig 'kaux': did you mean 'k_aux'"),
    "skip of an autoencoder": ({"skip": True}, "unknown key of TopKConfig 'skip'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    change, words = REFUSED[name]
    with pytest.raises(ConfigError, match=re.escape(words)):
        sk.create("topk", **{**GOOD, **change})


def test_transcoder_refuses_a_bad_target_width() -> None:
    with pytest.raises(ConfigError, match="d_target = 0, expected a positive integer"):
        sk.create("transcoder", **GOOD, d_target=0)
    with pytest.raises(ConfigError, match="skip = 1, expected true or false"):
        sk.create("transcoder", **GOOD, skip=1)


def test_missing_keys_are_named() -> None:
    with pytest.raises(ConfigError, match="TopKConfig: missing d_sae, k"):
        sk.create("topk", d_in=8)


def test_an_unknown_architecture_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="unknown architecture 'topkk': did you mean 'topk'"):
        sk.create("topkk", **GOOD)
    with pytest.raises(UnknownNameError, match=r"known: .*topk.*transcoder"):
        sk.create("zzzzzz", **GOOD)


def test_a_config_of_another_architecture_is_refused() -> None:
    with pytest.raises(ConfigError, match="config is a TopKConfig, expected TranscoderConfig"):
        coder_class("transcoder")(coder_config("topk", **GOOD))


@pytest.mark.parametrize("shape", [(4, 7), (4, 1), ()], ids=str)
@pytest.mark.parametrize("name", ["topk", "transcoder"])
def test_inputs_that_do_not_fit_are_not_broadcast(name: str, shape: tuple[int, ...]) -> None:
    coder, x = sk.create(name, **GOOD), torch.ones(shape)
    for call in (coder, coder.encode, lambda x: coder.loss(x, torch.ones(4, 8))):
        with pytest.raises(ShapeError):
            call(x)
    with pytest.raises(ShapeError, match=re.escape(f"x is {shape} float32 cpu, expected (…, 8)")):
        coder.encode(x)


def test_targets_that_do_not_fit() -> None:
    x = torch.ones(4, 8)
    with pytest.raises(ShapeError, match=re.escape("target is (4, 7) float32 cpu, expected (4, 8)")):
        sk.create("topk", **GOOD).loss(x, torch.ones(4, 7))
    wide = sk.create("transcoder", **GOOD, d_target=5)
    with pytest.raises(ShapeError, match=re.escape("a target (…, 5) is needed, d_in is 8")):
        wide.loss(x)
    with pytest.raises(ShapeError, match=re.escape("target is (3, 5) float32 cpu, expected (4, 5)")):
        wide.loss(x, torch.ones(3, 5))


def test_a_subclass_must_define_encode_and_loss() -> None:
    class Bare(sk.SparseCoder):
        pass

    bare = Bare(sk.CoderConfig(8, 20))
    with pytest.raises(NotImplementedError, match="Bare must define encode"):
        bare.encode(torch.ones(1, 8))
    with pytest.raises(NotImplementedError, match="Bare must define loss"):
        bare.loss(torch.ones(1, 8))


@pytest.mark.parametrize(
    "x", [torch.ones(1, 4), torch.full((5, 4), 3.0), torch.zeros(2, 4)], ids=["one", "same", "zero"]
)
def test_a_batch_without_variance_has_a_sane_loss(x: torch.Tensor) -> None:
    coder = sk.create("topk", d_in=4, d_sae=8, k=2, seed=0)
    total = coder.loss(x).total
    total.backward()
    assert 0 <= total.item() < 10
    assert all(bool(p.grad.isfinite().all()) for p in coder.parameters() if p.grad is not None)
