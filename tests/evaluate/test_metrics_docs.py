"""docs/metrics.md: its example runs, and it names every figure."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.tiny_lm import tiny_source

import sae_kernels as sk
from sae_kernels.evaluate import evaluate
from sae_kernels.plugins import plugins

TEXT = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")


@pytest.fixture
def sae() -> sk.SparseCoder:
    return sk.create("topk", d_in=16, d_sae=64, k=4, seed=0)


def test_the_example_is_a_plugin(sae: sk.SparseCoder) -> None:
    names: dict[str, object] = {}
    exec(TEXT.split("```python\n")[1].split("```")[0], names)
    plugins().register(SimpleNamespace(sae_kernels_metrics=names["sae_kernels_metrics"]), "l1-plugin")
    try:
        source = tiny_source()
        found = evaluate(sae, source, max_tokens=None, metrics=["l1"])["metrics"]
    finally:
        plugins().unregister("l1-plugin")
    with torch.no_grad():
        values = torch.cat([sae.encode(source.block(i).input).values for i in range(source.n_blocks)])
    assert found == {"l1": pytest.approx(float(values.abs().sum(1).mean()), rel=1e-5)}


def test_every_figure_is_explained(sae: sk.SparseCoder) -> None:
    found = evaluate(sae, tiny_source())
    places = {"ablation", "hook_in", "hook_out", "sequences", "replaced_tokens", "intervals"}
    for figure in [*found["metrics"], *(found["language_model"].keys() - places)]:
        assert f"`{figure}`" in TEXT, figure
