"""bench/quality: what it reads from runs, and that its dense references say what the architectures say."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import sae_kernels as sk
from bench.quality import papers
from bench.quality.budget import Budget, Job
from bench.quality.contenders import OURS, Contender, contenders, k
from bench.quality.ours import Ours
from bench.quality.rows import Rows
from bench.quality.runs import at_l0, best_lr, next_setting, train
from bench.quality.table import table


def run(l0: float, fvu: float, lr: float = 1.0, seed: int = 0) -> dict[str, object]:
    """As `train` returns them."""
    measured = {"l0": l0, "fvu": fvu}
    return {"row": "a", "library": "b", "lr": lr, "seed": seed, "test": measured, "validation": measured}


def test_fvu_at_an_l0() -> None:
    line = [run(12, 0.3), run(48, 0.1)]
    assert at_l0(line) == pytest.approx(0.2)
    assert at_l0([*line, run(24.1, 0.15)]) == 0.15
    assert math.isnan(at_l0([run(12, 0.3)]))
    assert math.isnan(at_l0([run(30, 0.3), run(48, 0.1)]))
    assert at_l0([run(12, 0.3), run(21, 0.1)]) < 0.1


def test_where_to_look_next() -> None:
    falls = [{**run(96 / setting, 0.1), "setting": setting} for setting in (1.0, 2.0)]
    assert next_setting(falls) == pytest.approx(4.0)
    assert next_setting(falls[:1]) is None
    assert next_setting([{**run(9, 0.1), "setting": 1.0}, {**run(9, 0.1), "setting": 2.0}]) is None
    assert next_setting([{**run(9, 0.1), "setting": 1.0}, {**run(9.1, 0.1), "setting": 2.0}]) is None


def test_the_best_rate_is_that_of_the_lowest_seed() -> None:
    runs = [run(24, 0.3, 1.0), run(24, 0.2, 2.0), run(24, 0.1, 1.0, seed=1), run(1, 0.0, 3.0)]
    assert best_lr(runs) == 2.0
    assert "| a | b | 1 | 24.0 | 0.3000, 0.1000 | 0.2000 | 0.2000 |" in table(runs, [("a", "b")])


def test_names_are_unique() -> None:
    names = [each.name for each in contenders()]
    assert len(names) == len(set(names))


def test_a_run_counts_who_fired() -> None:
    """Latents that are never told of are dead, and then AuxK trains them all."""
    x = torch.randn(256, 8)
    rows = Rows(1, (x, x), (x, x), (x, x))
    contender = Contender("topk", OURS, (2.0,), lambda job: Ours(job, "topk", k(job)))
    found = train(contender, Job(2.0, 1e-2, 0, 8, 8, 1, Budget(d_sae=16, batch=64, steps=8)), rows)
    assert found["dead"] < 0.5
    assert found["test"]["l0"] <= 2
    assert 0 < found["test"]["fvu"] < 1


def test_scales_of_several_layers() -> None:
    x = torch.randn(512, 6) * torch.tensor([1.0, 1, 1, 50, 50, 50])
    scaled = Rows(2, (x, x), (x, x), (x, x)).scaled("sqrt_d")
    norms = scaled.train[0].view(-1, 2, 3).norm(dim=2).mean(0)
    assert torch.allclose(norms, torch.full((2,), math.sqrt(3)))
    assert scaled.train[1] is scaled.train[0]


def loss_of_paper(paper: papers.Paper, x: Tensor, y: Tensor) -> Tensor:
    """With the whole of λ."""
    f = paper.codes(x)
    error = (y - paper.reconstruction(f, x)).square().sum(1).mean()
    return error + paper.job.setting * paper.penalty(f, x)


@torch.no_grad()
def test_crosscoder_of_the_paper() -> None:
    job = Job(0.5, 1e-3, 0, 12, 12, 3, Budget(d_sae=20))
    paper = papers.Crosscoder(job)
    paper.b_enc.normal_()
    paper.b_dec.normal_()
    coder = sk.create("crosscoder", d_in=12, d_sae=20, n_layers=3, sparsity_coefficient=0.5)
    for own, given in ((coder.W_enc, paper.W_enc.mT), (coder.b_enc, paper.b_enc), (coder.W_dec, paper.W_dec)):
        own.copy_(given)
    coder.b_dec.copy_(paper.b_dec)
    x = torch.randn(40, 12)
    assert torch.allclose(coder.loss(x).total, loss_of_paper(paper, x, x), rtol=1e-5)


@torch.no_grad()
def test_cross_layer_transcoder_of_the_paper() -> None:
    job = Job(0.5, 1e-3, 0, 12, 12, 3, Budget(d_sae=30))
    paper = papers.CrossLayer(job, epsilon=1.0)
    paper.b_enc.normal_(std=0.1)
    paper.b_dec.normal_()
    coder = sk.create("clt", d_in=12, d_sae=30, n_layers=3, sparsity_coefficient=0.5)
    coder.W_enc.copy_(paper.E.mT.reshape(30, 4))
    coder.b_enc.copy_(paper.b_enc.flatten())
    coder.b_dec.copy_(paper.b_dec)
    coder.get_parameter("log_theta").copy_(paper.log_theta.flatten())
    for layer in range(3):
        coder.get_parameter(f"W_dec_from.{layer}").copy_(paper.D[layer, :, layer:].reshape(10, -1))
    x, y = torch.randn(40, 12), torch.randn(40, 12)
    assert (paper.codes(x) > 0).any()
    assert torch.allclose(coder.loss(x, y).total, loss_of_paper(paper, x, y), rtol=1e-5)
    assert torch.allclose(coder(x), paper.infer(x)[1], atol=1e-5)


@torch.no_grad()
def test_jumprelu_transcoder_of_the_paper() -> None:
    job = Job(0.5, 1e-3, 0, 8, 6, 1, Budget(d_sae=30))
    paper = papers.Transcoder(job)
    paper.b_enc.normal_(std=0.1)
    keys = {"sparsity_coefficient": 0.5, "sparsity_loss": "tanh"}
    coder = sk.create("jumprelu_transcoder", d_in=8, d_target=6, d_sae=30, **keys)
    for own, given in ((coder.W_enc, paper.W_enc.mT), (coder.b_enc, paper.b_enc), (coder.W_dec, paper.W_dec)):
        own.copy_(given)
    coder.get_parameter("log_theta").copy_(paper.log_theta)
    x, y = torch.randn(40, 8), torch.randn(40, 6)
    assert torch.allclose(coder.loss(x, y).total, loss_of_paper(paper, x, y), rtol=1e-5)


def test_gradients_of_the_estimate() -> None:
    z = torch.tensor([[0.5, 0.9, 1.4, 3.0]], requires_grad=True)
    theta = torch.ones(4, requires_grad=True)
    papers.JumpReLU.apply(z, theta, 1.0, True).sum().backward()  # pyright: ignore[reportAttributeAccessIssue]
    assert z.grad is not None
    assert theta.grad is not None
    assert theta.grad.tolist() == [0, -1, -1, 0]
    assert z.grad.tolist() == [[0, 1, 2, 1]]


def test_rows_are_kept(tmp_path: Path) -> None:
    from bench.quality.rows import rows_of

    x = torch.randn(4, 6)
    torch.save([(x, None), (x, x + 1), (x, None)], tmp_path / "residuals.pt")
    rows = rows_of("residuals", tmp_path)
    assert rows.n_layers == 3
    assert rows.train[1] is rows.train[0]
    assert torch.equal(rows.validation[1], x + 1)
