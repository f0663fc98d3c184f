"""The optimiser on the kernel `adam_rows`: torch's Adam and what surrounds it, in one pass."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import sae_kernels as sk
from bench import cases
from sae_kernels.train import train
from sae_kernels.train.adam_rows import AdamRows


def toy(step: int) -> torch.Tensor:
    return cases.normal(64, 16, seed=step) @ cases.normal(16, 16, seed=999) + 0.5


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("architecture", ["topk", "transcoder"])
def test_the_trajectory_of_torchs_adam(backend: str, architecture: str) -> None:
    coders = [sk.create(architecture, d_in=16, d_sae=48, k=4, seed=0) for _ in range(2)]
    plain, rows = coders
    rows.unit_norm_in_optimizer = True
    unit = [rows.get_parameter(name) for name in rows.unit_norm_rows]
    assert len(unit) == (architecture == "topk")
    optimisers = [torch.optim.Adam(plain.parameters(), lr=1e-3), AdamRows(rows.parameters(), lr=1e-3, unit_norm=unit)]
    with sk.use(backend):
        for step in range(25):
            for coder, optimiser in zip(coders, optimisers, strict=True):
                for group in optimiser.param_groups:
                    group["lr"] = 1e-3 * 0.95**step
                optimiser.zero_grad()
                coder.loss(toy(step)).total.backward()
                coder.before_step()
                optimiser.step()
                coder.after_step()
    for (name, one), other in zip(plain.named_parameters(), rows.parameters(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
    if unit:
        torch.testing.assert_close(unit[0].norm(dim=1), torch.ones(48))


@pytest.mark.parametrize("shape", [(), (5,), (5000,), (6, 4), (3, 2, 4), (2, 4998)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parameters_of_any_shape(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    def values(seed: int) -> torch.Tensor:
        return cases.normal(9999, seed=seed).to(dtype)[: math.prod(shape)].view(shape).clone()

    ours, theirs = nn.Parameter(values(1)), nn.Parameter(values(1))
    optimisers = AdamRows([ours], lr=0.1), torch.optim.Adam([theirs], lr=0.1)
    for step in range(3):
        for parameter, optimiser in zip((ours, theirs), optimisers, strict=True):
            parameter.grad = values(10 + step)
            optimiser.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert optimisers[0].state[ours]["exp_avg"].dtype == dtype


def test_rows_of_more_than_one_dimension_have_unit_norm_as_a_whole() -> None:
    parameter = nn.Parameter(cases.normal(5, 2, 3))
    parameter.grad = torch.ones(5, 2, 3)
    AdamRows([parameter], unit_norm=[parameter]).step()
    torch.testing.assert_close(parameter.flatten(1).norm(dim=1), torch.ones(5))


def test_rates_of_a_step_far_on() -> None:
    ours, theirs = (nn.Parameter(torch.ones(2, 3)) for _ in range(2))
    optimisers = AdamRows([ours], lr=0.1), torch.optim.Adam([theirs], lr=0.1)
    for parameter, optimiser in zip((ours, theirs), optimisers, strict=True):
        parameter.grad = torch.full((2, 3), 0.5)
        optimiser.step()
        optimiser.state[parameter]["step"] += 4999  # as after a resume
        optimiser.step()
    torch.testing.assert_close(ours, theirs)


def test_training_with_either_ends_nearly_alike(configure: Any, tables: dict[str, Any]) -> None:
    ends = []
    for optimizer in ("adam", "adam_rows"):
        tables["output"]["dir"] += optimizer
        ends.append(train(configure(steps=100, optimizer=optimizer), progress=False))
    assert ends[1].coder.unit_norm_in_optimizer
    torch.testing.assert_close(ends[1].coder.W_dec.norm(dim=1), torch.ones(32))
    assert ends[1].metrics["fvu"] == pytest.approx(ends[0].metrics["fvu"], rel=0.2)
