"""relu, gated and jumprelu: configurations, initial weights, dtypes of thresholds, saving, folding, fresh starts."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from support.compare import assert_close

import sae_kernels as sk
from bench import cases
from sae_kernels.architectures import coder_config
from sae_kernels.architectures._affine import Affine
from sae_kernels.architectures._straight_through import window
from sae_kernels.errors import ConfigError

D, M = 8, 20


def make(name: str, **config: object) -> sk.SparseCoder:
    return sk.create(name, d_in=D, d_sae=M, sparsity_coefficient=0.5, seed=0, **config)


REFUSED = {
    "no coefficient": ("relu", {"sparsity_coefficient": None}, "sparsity_coefficient = None, expected a number >= 0"),
    "negative": ("gated", {"sparsity_coefficient": -1.0}, "sparsity_coefficient = -1.0, expected a number >= 0"),
    "warm-up": ("relu", {"sparsity_warmup_steps": -1}, "sparsity_warmup_steps = -1, expected an integer >= 0"),
    "variant": ("relu", {"variant": "april"}, "unknown value of variant 'april': did you mean 'april_2024'"),
    "normalize": ("gated", {"normalize_decoder": 1}, "normalize_decoder = 1, expected true or false"),
    "freeze": ("gated", {"freeze_auxiliary": None}, "freeze_auxiliary = None, expected true or false"),
    "loss": ("jumprelu", {"sparsity_loss": "tan"}, "unknown value of sparsity_loss 'tan': did you mean 'tanh'"),
    "no target": ("jumprelu", {"sparsity_loss": "quadratic"}, "sparsity_loss = 'quadratic': missing l0_target"),
    "a target for l0": ("jumprelu", {"l0_target": 3}, "l0_target belongs to sparsity_loss = 'quadratic', found 'l0'"),
    "c for l0": ("jumprelu", {"tanh_scale": 3}, "tanh_scale belongs to sparsity_loss = 'tanh', found 'l0'"),
    "target 0": ("jumprelu", {"sparsity_loss": "quadratic", "l0_target": 0}, "l0_target = 0, expected a number > 0"),
    "bandwidth 0": ("jumprelu", {"bandwidth": 0.0}, "bandwidth = 0.0, expected a number > 0"),
    "threshold": ("jumprelu", {"threshold_init": -0.1}, "threshold_init = -0.1, expected a number >= 0"),
    "pre-act": (
        "jumprelu",
        {"sparsity_loss": "tanh", "pre_act_coefficient": "1"},
        "pre_act_coefficient = '1', expected a number >= 0",
    ),
    "misspelt": ("jumprelu", {"bandwith": 0.1}, "unknown key of JumpReLUConfig 'bandwith': did you mean 'bandwidth'"),
    "density": ("relu", {"initial_density": 1}, "initial_density = 1, expected a number between 0 and 1"),
    "density of gates": ("gated", {"initial_density": "5%"}, "initial_density = '5%', expected a number between"),
    "k": ("relu", {"k": 3}, "unknown key of ReLUConfig 'k'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    name, change, words = REFUSED[case]
    with pytest.raises(ConfigError, match=re.escape(words)):
        coder_config(name, **{"d_in": D, "d_sae": M, "sparsity_coefficient": 0.5, **change})


def test_defaults_follow_the_loss_and_show() -> None:
    config = coder_config("jumprelu", d_in=D, d_sae=M, sparsity_coefficient=0.5)
    tanh = coder_config("jumprelu", d_in=D, d_sae=M, sparsity_coefficient=0.5, sparsity_loss="tanh")
    shown = ("bandwidth", "threshold_init", "normalize_decoder", "tanh_scale", "pre_act_coefficient")
    assert [getattr(config, name) for name in shown] == [0.06, 1.0, True, None, None]
    assert [getattr(tanh, name) for name in shown] == [2.0, 0.3, False, 4.0, 3e-6]
    for each in (config, tanh):
        assert type(each).build(**each.to_dict()) == each


@pytest.mark.parametrize(
    ("name", "config", "encoder", "norm", "kept"),
    [
        ("relu", {}, 0.1, 0.1, False),
        ("relu", {"variant": "2023"}, 0.1, 1, True),
        ("gated", {}, 0.1, 1, True),
        ("gated", {"normalize_decoder": False}, 0.1, 1, False),
        ("jumprelu", {}, 0.5, 1, True),
        ("jumprelu", {"sparsity_loss": "tanh"}, 0.1, 0.1, False),
    ],
    ids=str,
)
def test_initial_weights_and_norms(name: str, config: dict, encoder: float, norm: float, kept: bool) -> None:
    coder = make(name, **config)
    assert_close(coder.W_enc.detach() * norm, coder.W_dec.detach().double() * encoder)
    assert_close(coder.W_dec.detach().norm(dim=1), torch.full((M,), norm, dtype=torch.float64))
    x = cases.normal(300, D) + 3
    coder.initialise(x, x)
    if name == "jumprelu":
        pre_acts = (x - x.mean(0)) @ coder.W_enc.T  # of the input without its mean, whichever bias takes it off
        torch.testing.assert_close(coder.encoder_input(x) @ coder.W_enc.T + coder.b_enc, pre_acts, rtol=1e-4, atol=1e-5)
    else:
        assert (coder.encode(x).dense() > 0).sum(0).tolist() == [15] * M  # 5 % of 300 tokens
    coder.loss(x).total.backward()
    coder.before_step()
    with torch.no_grad():
        coder.W_dec.mul_(3)
    coder.after_step()
    along = (coder.W_dec.grad * coder.W_dec).sum(1) / coder.W_dec.norm(dim=1)
    assert (along.abs().max() < 1e-5) == kept
    assert_close(coder.W_dec.detach().norm(dim=1), torch.full((M,), 1 if kept else 3 * norm, dtype=torch.float64))


def test_thresholds_start_in_the_unit_of_the_inputs() -> None:
    coder = make("jumprelu", threshold_init=0.25)
    x = 50 * cases.normal(2000, D) + 7
    coder.initialise(x, x)
    assert coder.input_rms.item() == pytest.approx(50, rel=0.05)
    torch.testing.assert_close(coder.theta, torch.full((M,), 0.25 * coder.input_rms.item()))
    same = torch.ones(5, D)
    coder.initialise(same, same)  # nothing is left without the mean
    assert coder.input_rms == 1


def test_a_window_is_no_narrower_than_the_steps_of_16_bits() -> None:
    theta = torch.tensor([1e-3, 0.5, 3.0])
    assert window(1e-3, theta, torch.float32).tolist() == pytest.approx([1e-3] * 3)
    widened = window(torch.tensor(1e-3), theta, torch.bfloat16)
    assert widened.tolist() == pytest.approx([1e-3, 0.5 / 32, 3 / 32])
    for at, width in zip(theta[1:].tolist(), widened[1:].tolist(), strict=True):
        near = torch.linspace(at - width / 2, at + width / 2, 999).bfloat16().unique()
        assert len(near) > 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_thresholds_stay_float32_and_come_back_from_a_file(tmp_path: Path, dtype: torch.dtype) -> None:
    coder = make("jumprelu")
    x = 3 * cases.normal(64, D)
    coder.initialise(x, x)
    with torch.no_grad():
        coder.log_theta += 1e-4 * torch.arange(M)
    before = coder.log_theta.detach().clone()
    coder.to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert (coder.W_enc.dtype, coder.log_theta.dtype, coder.input_rms.dtype) == (dtype, wide, wide)
    assert torch.equal(coder.log_theta, before.to(wide))
    sk.save(coder, tmp_path / "sae")
    back = sk.load(tmp_path / "sae")
    assert back.config == coder.config
    for key, tensor in back.state_dict().items():
        assert tensor.dtype == coder.state_dict()[key].dtype
        assert torch.equal(tensor, coder.state_dict()[key])
    x = x.to(dtype)
    assert torch.equal(back(x), coder(x))
    assert torch.equal(back.loss(x).total, coder.loss(x).total)


@pytest.mark.parametrize("name", ["relu", "gated"])
def test_the_others_come_back_from_a_file(tmp_path: Path, name: str) -> None:
    coder = make(name)
    for i, parameter in enumerate(coder.parameters()):
        parameter.data = cases.normal(*parameter.shape, seed=i)
    sk.save(coder, tmp_path / "sae")
    x = cases.normal(9, D)
    assert torch.equal(sk.load(tmp_path / "sae")(x), coder(x))


def test_moving_keeps_the_parameter_itself() -> None:
    coder = make("jumprelu")
    before = coder.log_theta
    assert coder.half().log_theta is before
    assert coder.to("meta").log_theta.dtype == torch.float32


def test_folding_takes_windows_along() -> None:
    """After folding, training goes on with the same windows, in the new unit of the latents."""
    coder = make("jumprelu", bandwidth=0.5)
    x = cases.normal(200, D)
    coder.initialise(x, x)
    scale = 0.25
    input = Affine(torch.full((D,), 2.0), torch.full((D,), scale))
    grads = coder.loss(x).parts["l0"], torch.autograd.grad(coder.loss(x).total, coder.log_theta)[0]
    coder.sparsity /= scale**2  # the squared error grows by as much
    coder.fold(input, input)
    raw = input.invert(x)
    after = coder.loss(raw).parts["l0"], torch.autograd.grad(coder.loss(raw).total, coder.log_theta)[0]
    torch.testing.assert_close(after[0], grads[0])
    torch.testing.assert_close(after[1] * scale**2, grads[1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["relu", "gated", "jumprelu"])
def test_dead_latents_start_anew(name: str) -> None:
    coder = make(name)
    x = cases.normal(200, D) + 5
    coder.initialise(x, x)
    dead = torch.tensor([1, 4, 19])
    with torch.no_grad():
        for key, parameter in coder.named_parameters():
            if key in ("b_enc", "b_gate", "b_mag", "log_theta"):
                parameter[dead] += -50.0 if key != "log_theta" else 50.0
    living = torch.ones(M, dtype=torch.bool)
    living[dead] = False
    assert not coder.encode(x).fired()[dead].any()
    coder.resample(dead, x[:3], x[:3], living=living)
    often = coder.encode(x).dense()[:, dead] > 0
    assert often.any(0).all()
    assert often.float().mean() < 0.7, "they answer to the activations' mean"
    if name == "jumprelu":
        spread = coder.input_rms * coder.W_enc[4].norm()  # of its pre-acts; thresholds start at two of them
        assert coder.log_theta[4].item() == pytest.approx(math.log(2 * spread.item()))


def test_empty_batches_and_one_token() -> None:
    for name in ("relu", "gated", "jumprelu"):
        coder = make(name)
        assert coder(torch.zeros(0, D)).shape == (0, D)
        total = coder.loss(cases.normal(1, D)).total
        total.backward()
        assert total.isfinite()


def test_a_batch_that_is_not_finite_shows_in_the_loss() -> None:
    x = cases.normal(4, D)
    x[1, 2] = torch.nan
    for name, config in (("relu", {}), ("gated", {}), ("jumprelu", {}), ("jumprelu", {"sparsity_loss": "tanh"})):
        assert not make(name, **config).loss(x).total.isfinite()
