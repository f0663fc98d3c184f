"""Every built-in architecture with every feature of training on: exact when it goes on, and saved folded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import sae_kernels as sk
from sae_kernels.architectures import coder_class
from sae_kernels.architectures.builtin import sae_kernels_architectures
from sae_kernels.train import Config, checkpoint, train

NAMES = [each.name for each in sae_kernels_architectures()]
KEYS: dict[str, dict[str, Any]] = {
    "relu": {"sparsity_coefficient": 0.1},
    "gated": {"sparsity_coefficient": 0.1},
    "jumprelu": {"sparsity_coefficient": 0.1},
    "topk": {"k": 3},
    "batch_topk": {"k": 3},
    "matryoshka": {"k": 3, "prefixes": [8, 32]},
    "transcoder": {"k": 3},
    "skip_transcoder": {"k": 3},
    "jumprelu_transcoder": {"sparsity_coefficient": 0.1},
    "crosscoder": {"n_layers": 2, "sparsity_coefficient": 0.1},
    "clt": {"n_layers": 2, "sparsity_coefficient": 0.1},
    "token_norm": {"coder": "topk", "coder_config": {"k": 3}},
}
OF_TWO_WIDTHS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "clt")


def test_all_are_here() -> None:
    assert set(NAMES) <= set(KEYS)


@pytest.mark.parametrize("name", NAMES)
def test_all_features_together(
    name: str, tables: dict[str, dict[str, Any]], shards: Path, plain_shards: Path, tmp_path: Path
) -> None:
    cls = coder_class(name)
    tables["activations"]["path"] = str(shards if name in OF_TWO_WIDTHS else plain_shards)
    tables["coder"] = {"architecture": name, "d_sae": 32, **KEYS[name]}
    tables["training"].update(
        steps=9,
        accumulate=2,
        optimizer="adam_rows",
        lr_schedule="constant",
        grad_clip=10.0,
        dead_after_tokens=32,
        normalize="sqrt_d_centred" if cls.can_fold() else "none",
    )
    if cls.can_resample():
        tables["training"].update(resample_every=3, resample_until=9, resample_tokens=64)
    whole = train(Config.from_dict(tables), progress=False)
    tables["output"]["dir"] = str(tmp_path / "again")
    tables["training"]["steps"] = 4
    train(Config.from_dict(tables), progress=False)
    tables["training"]["steps"] = 9
    again = train(Config.from_dict(tables), progress=False)
    assert again.resumed_from == 4
    ends = [checkpoint.newest(run.checkpoints) for run in (whole, again)]
    assert ends[0] is not None
    assert ends[1] is not None
    there = ends[1].coder.state_dict()
    assert all(torch.equal(value, there[key]) for key, value in ends[0].coder.state_dict().items())
    assert all(torch.equal(value, ends[1].optimizer[key]) for key, value in ends[0].optimizer.items())
    assert {**whole.metrics, "tokens_per_second": 0} == {**again.metrics, "tokens_per_second": 0}

    if whole.normalize is None:
        return
    block = whole.source.block(0)
    saved = sk.load(whole.directory / "coder").eval()
    with torch.no_grad():
        inside = whole.coder.eval()(whole.normalize.input.apply(block.input))
        torch.testing.assert_close(saved(block.input), whole.normalize.target.invert(inside), rtol=1e-3, atol=1e-3)
