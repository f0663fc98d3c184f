from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch
from support.runs import Rows

import sae_kernels as sk
from sae_kernels import registry
from sae_kernels.errors import AdapterError, ArgumentError, PluginError, ShapeError, UnknownNameError
from sae_kernels.evaluate import EvalBatch, evaluate
from sae_kernels.plugins import plugins
from sae_kernels.specs import Metric


@pytest.fixture
def sae() -> sk.SparseCoder:
    return sk.create("topk", d_in=8, d_sae=32, k=4, seed=0)


@pytest.fixture
def rows() -> Rows:
    return Rows(torch.randn(35, 8))


@torch.no_grad()
def test_figures_are_those_of_the_dense_formulas(sae: sk.SparseCoder, rows: Rows) -> None:
    found = evaluate(sae, rows, batch_tokens=4)
    y, r = rows.input.double(), sae(rows.input).double()
    metrics = found["metrics"]
    assert found["tokens"] == metrics["dead_window_tokens"] == 35
    assert metrics["fvu"] == pytest.approx(float((y - r).square().sum() / (y - y.mean(0)).square().sum()), rel=1e-6)
    assert metrics["mse"] == pytest.approx(float((y - r).square().mean()), rel=1e-6)
    assert metrics["l0"] == pytest.approx(float(sae.encode(rows.input).l0().double().mean()))
    assert metrics["dead_fraction"] == pytest.approx(float((~sae.encode(rows.input).fired()).double().mean()))
    assert found["architecture"] == "topk"
    assert found["coder"]["d_sae"] == 32
    assert "language_model" not in found
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@torch.no_grad()
def test_a_transcoder_is_held_to_its_target() -> None:
    transcoder = sk.create("transcoder", d_in=8, d_target=5, d_sae=32, k=4, skip=True, seed=0)
    torch.nn.init.normal_(transcoder.W_dec)
    torch.nn.init.normal_(transcoder.W_skip)
    x, y = torch.randn(35, 8), torch.randn(35, 5)
    expected = (y.double() - transcoder(x).double()).square().mean()
    assert evaluate(transcoder, Rows(x, y))["metrics"]["mse"] == pytest.approx(float(expected), rel=1e-6)


def test_max_tokens_cuts_inside_a_block(sae: sk.SparseCoder, rows: Rows) -> None:
    found = evaluate(sae, rows, max_tokens=17, batch_tokens=5)
    assert found["tokens"] == 17
    assert found == evaluate(sae, Rows(rows.input[:17], lengths=[17], n_blocks=1), max_tokens=None, batch_tokens=5)


def test_an_endless_source_needs_an_end(sae: sk.SparseCoder, rows: Rows) -> None:
    rows.n_blocks = None
    assert evaluate(sae, rows, max_tokens=100)["tokens"] == 100
    with pytest.raises(ArgumentError, match="never ends"):
        evaluate(sae, rows, max_tokens=None)


def test_the_coder_infers_and_is_left_as_it_was(sae: sk.SparseCoder, rows: Rows) -> None:
    seen = []
    sae.encode = lambda x, encode=sae.encode: (
        seen.append((sae.training, torch.is_grad_enabled())),
        encode(x),
    )[1]
    sae.train()
    evaluate(sae, rows)
    assert set(seen) == {(False, False)}
    assert sae.training


def test_undefined_is_none(sae: sk.SparseCoder) -> None:
    found = evaluate(sae, Rows(torch.ones(35, 8)))
    assert found["metrics"]["fvu"] is None
    json.dumps(found, allow_nan=False)


def test_bfloat16_coder_and_float32_data(rows: Rows) -> None:
    sae = sk.create("topk", d_in=8, d_sae=32, k=4, seed=0, dtype=torch.bfloat16)
    assert evaluate(sae, rows)["metrics"]["l0"] <= 4


def test_bad_arguments(sae: sk.SparseCoder, rows: Rows) -> None:
    with pytest.raises(ShapeError, match="8 features to 8, the source gives 9 and 9"):
        evaluate(sae, Rows(torch.randn(35, 9)))
    with pytest.raises(ArgumentError, match="ablation = 'zeros'"):
        evaluate(sae, rows, ablation="zeros")
    for key in ("max_tokens", "batch_tokens", "loss_tokens"):
        with pytest.raises(ArgumentError, match=f"{key} = 0"):
            evaluate(sae, rows, **{key: 0})
    with pytest.raises(AdapterError, match="no tokens"):
        evaluate(sae, Rows(torch.randn(0, 8), lengths=[0], n_blocks=1))
    with pytest.raises(UnknownNameError, match="'cosine'"):
        evaluate(sae, rows, metrics=["cosin"])


# Metrics by plugin


class Largest:
    """A stranger's metric."""

    value = 0.0

    def update(self, batch: EvalBatch) -> None:
        self.value = max(self.value, float(batch.codes.values.max()))

    def result(self) -> dict[str, float]:
        return {"largest": self.value}


class Broken(Largest):
    def update(self, batch: EvalBatch) -> None:
        raise ValueError("no such luck")


class Clash(Largest):
    def result(self) -> dict[str, float]:
        return {"fvu": 0.0}


@pytest.fixture
def stranger(request: pytest.FixtureRequest) -> Iterator[None]:
    class Plugin:
        @sk.hookimpl
        def sae_kernels_metrics(self) -> list[Metric]:
            return [Metric("theirs", "a stranger's", request.param)]

    plugins().register(Plugin(), "stranger")
    yield
    plugins().unregister("stranger")


def test_the_built_in_metrics_are_registered() -> None:
    assert {"l0", "fvu", "mse", "cosine", "relative_norm", "density"} <= set(registry.metrics.names())


def test_metrics_by_name(sae: sk.SparseCoder, rows: Rows) -> None:
    assert list(evaluate(sae, rows, metrics=["mse", "l0"])["metrics"]) == ["mse", "l0"]


@pytest.mark.parametrize("stranger", [Largest], indirect=True)
@pytest.mark.usefixtures("stranger")
def test_a_strangers_metric(sae: sk.SparseCoder, rows: Rows) -> None:
    found = evaluate(sae, rows)
    assert found["metrics"]["largest"] == pytest.approx(float(sae.encode(rows.input).values.detach().max()))
    assert "failed" not in found


@pytest.mark.parametrize("stranger", [Broken, Clash, "no.such.module:Thing"], indirect=True)
@pytest.mark.usefixtures("stranger")
def test_a_broken_metric_costs_nobody_else(sae: sk.SparseCoder, rows: Rows) -> None:
    with pytest.warns(RuntimeWarning, match="'theirs' is left out"):
        found = evaluate(sae, rows)
    assert found["metrics"]["fvu"] > 0
    assert list(found["failed"]) == ["theirs"]


@pytest.mark.parametrize("stranger", [Broken], indirect=True)
@pytest.mark.usefixtures("stranger")
def test_a_broken_metric_asked_for_by_name_raises(sae: sk.SparseCoder, rows: Rows) -> None:
    with pytest.raises(ValueError, match="no such luck"):
        evaluate(sae, rows, metrics=["theirs"])


@pytest.mark.parametrize("stranger", [Clash], indirect=True)
@pytest.mark.usefixtures("stranger")
def test_two_metrics_for_one_figure(sae: sk.SparseCoder, rows: Rows) -> None:
    with pytest.raises(PluginError, match="'fvu' and 'theirs' both give a figure 'fvu'"):
        evaluate(sae, rows, metrics=["fvu", "theirs"])
