"""`subtract_b_dec` of every architecture that has it, and `jumprelu_transcoder`, against dense float64 arithmetic."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.compare import assert_close
from torch import Tensor

import sae_kernels as sk
from bench import cases
from sae_kernels.architectures._affine import Affine
from sae_kernels.errors import ConfigError

D, D_OUT, M, N, K = 12, 9, 40, 32, 5
LAMBDA, EPSILON = 0.7, 0.5
Weights = dict[str, Tensor]
SPARSE = {"sparsity_coefficient": LAMBDA}
# architecture: its keys, and what it subtracts by default
PRE_BIAS = {
    "topk": ({"k": K}, True),
    "batch_topk": ({"k": K}, True),
    "matryoshka": ({"k": K}, True),
    "transcoder": ({"k": K, "skip": True}, False),
    "relu": (SPARSE, False),
    "relu-2023": ({**SPARSE, "variant": "2023"}, True),
    "gated": (SPARSE, True),
    "jumprelu": (SPARSE, False),
}


def made(name: str, **config: object) -> sk.SparseCoder:
    """With weights that no initialisation has."""
    coder = sk.create(name.split("-")[0], d_in=D, d_sae=M, seed=0, **config)
    for i, parameter in enumerate(coder.parameters()):
        parameter.data = cases.normal(*parameter.shape, seed=30 + i, scale=0.4)
    return coder


@pytest.mark.parametrize("given", [None, True, False])
@pytest.mark.parametrize("name", PRE_BIAS)
def test_what_the_encoder_reads(name: str, given: bool | None) -> None:
    config, default = PRE_BIAS[name]
    coder = made(name, **config, **({} if given is None else {"subtract_b_dec": given}))
    assert coder.config.subtract_b_dec is (default if given is None else given)
    x = cases.normal(N, D, seed=1)
    expected = x - coder.b_dec if coder.config.subtract_b_dec else x
    torch.testing.assert_close(coder.encoder_input(x), expected)
    other = made(name, **config, subtract_b_dec=False)
    other.load_state_dict(coder.state_dict())
    if coder.config.subtract_b_dec:  # W (x − b) + c = W x + (c − W b), gradients and all
        shift = (coder.W_enc.double() @ coder.b_dec.double()).float().detach()
        for bias in ("b_gate", "b_mag") if name == "gated" else ("b_enc",):
            gain = coder.r_mag.detach().exp() if bias == "b_mag" else 1.0
            getattr(other, bias).data -= gain * shift
    assert_close(coder(x).detach(), other(x).detach().double(), factor=50)
    assert_close(coder.loss(x).total.detach(), other.loss(x).total.detach().double(), factor=50)
    grads = [torch.autograd.grad(c.loss(x).total, [c.W_dec])[0] for c in (coder, other)]
    torch.testing.assert_close(*grads, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("name", PRE_BIAS)
def test_folding_and_starting(name: str, given: bool) -> None:
    coder = made(name, **PRE_BIAS[name][0], subtract_b_dec=given).double()
    input = Affine(3 * cases.normal(D, seed=2), 0.5 + cases.normal(D, seed=3).abs())
    x = (3 + 2 * cases.normal(N, D, seed=9)).double()
    codes, y = coder.encode(input.apply(x)), input.invert(coder(input.apply(x)))
    coder.fold(input, input)
    torch.testing.assert_close(coder(x), y)
    torch.testing.assert_close(coder.encode(x).fired(), codes.fired())
    started = sk.create(name.split("-")[0], d_in=D, d_sae=M, seed=0, **{**PRE_BIAS[name][0], "subtract_b_dec": given})
    raw = (5 + cases.normal(N, D, seed=10)).float()
    started.initialise(raw, raw)
    if name.split("-")[0] in ("relu", "gated"):
        assert (started.encode(raw).dense() > 0).sum(0).tolist() == [round(0.05 * N)] * M
    elif name != "transcoder":  # both read the mean as 0
        bias = started.b_enc
        pre_acts = started.encoder_input(raw.mean(0)) @ started.W_enc.T + bias
        assert float(pre_acts.detach().abs().max()) < 1e-4


def test_a_pre_bias_needs_one_space() -> None:
    with pytest.raises(ConfigError, match=r"subtract_b_dec = True with d_target = 9, expected d_in = 12"):
        sk.create("transcoder", d_in=D, d_sae=M, k=K, d_target=9, subtract_b_dec=True)
    with pytest.raises(ConfigError, match=r"subtract_b_dec = True, expected false"):
        sk.create("jumprelu_transcoder", d_in=D, d_sae=M, subtract_b_dec=True, **SPARSE)
    for name, (config, _) in PRE_BIAS.items():
        with pytest.raises(ConfigError, match=r"subtract_b_dec = 'yes', expected true or false"):
            sk.create(name.split("-")[0], d_in=D, d_sae=M, **config, subtract_b_dec="yes")


def expected(p: Weights, x: Tensor, y: Tensor, loss: str) -> tuple[Tensor, Tensor]:
    """(reconstruction, total): 2407.14435 and the January 2025 update, with a skip; a term that is 0 carries each
    straight-through estimate."""
    theta = p["log_theta"].exp()
    fixed = theta.detach()
    z = x @ p["W_enc"].T + p["b_enc"]
    near = (((z - fixed) / EPSILON).abs() < 0.5).double().detach()
    passed = z - z.detach() if loss == "tanh" else 0
    acts = torch.where(z > fixed, z, 0) + fixed / EPSILON * near * (fixed - theta + passed)
    found = acts @ p["W_dec"] + p["b_dec"]
    if "W_skip" in p:
        found = found + x @ p["W_skip"].T
    error = (y - found).square().sum() / N
    if loss == "l0":
        return found, error + LAMBDA * ((z > fixed) + near / EPSILON * (fixed - theta)).sum() / N
    norms = p["W_dec"].norm(dim=1)
    tanh, pre_act = torch.tanh(1.5 * acts * norms).sum() / N, (torch.relu(theta - z) * norms).sum() / N
    return found, error + LAMBDA * tanh + 0.3 * pre_act


@pytest.mark.parametrize("d_target", [None, D_OUT])
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("loss", ["l0", "tanh"])
def test_loss_and_every_gradient(loss: str, skip: bool, d_target: int | None) -> None:
    own = {"tanh_scale": 1.5, "pre_act_coefficient": 0.3} if loss == "tanh" else {}
    config = {**SPARSE, "sparsity_loss": loss, "bandwidth": EPSILON, **own}
    coder = made("jumprelu_transcoder", **config, skip=skip, d_target=d_target)
    coder.log_theta.data -= 0.7
    x, y = cases.normal(N, D, seed=1).requires_grad_(), cases.normal(N, d_target or D, seed=2)
    exact = {key: p.detach().double().requires_grad_() for key, p in coder.named_parameters()}
    exact_x = x.detach().double().requires_grad_()
    found, total = expected(exact, exact_x, y.double(), loss)
    mine = coder.loss(x, y)
    assert_close(mine.reconstruction.detach(), found.detach(), factor=2)
    assert_close(coder(x).detach(), found.detach(), factor=2)
    assert_close(mine.total.detach(), total.detach(), factor=2)
    grads = torch.autograd.grad(mine.total, [x, *coder.parameters()])
    for grad, true in zip(grads, torch.autograd.grad(total, [exact_x, *exact.values()]), strict=True):
        assert_close(grad, true, factor=4)


def test_fold_start_files(tmp_path: Path) -> None:
    coder = made("jumprelu_transcoder", **SPARSE, skip=True, d_target=D_OUT).double()
    input = Affine(3 * cases.normal(D, seed=2), 0.5 + cases.normal(D, seed=3).abs())
    target = Affine(cases.normal(D_OUT, seed=4), torch.full((D_OUT,), 0.37))
    x = (3 + 2 * cases.normal(N, D, seed=9)).double()
    y = target.invert(coder(input.apply(x)))
    coder.fold(input, target)
    torch.testing.assert_close(coder(x), y)
    started = sk.create("jumprelu_transcoder", d_in=D, d_sae=M, d_target=D_OUT, skip=True, seed=0, **SPARSE)
    raw, out = (5 + cases.normal(N, D, seed=10)).float(), cases.normal(N, D_OUT, seed=11)
    started.initialise(raw, out)
    torch.testing.assert_close(started.b_dec, out.mean(0))
    assert float((started.W_enc @ raw.mean(0) + started.b_enc).detach().abs().max()) < 1e-4
    dead = torch.tensor([1, 3])
    started.resample(dead, raw[:2], out[:2], living=torch.arange(M) > 5)
    assert float(started.theta.detach()[dead].max()) < float(started.theta.detach()[5])
    sk.save(started, tmp_path / "coder")
    torch.testing.assert_close(sk.load(tmp_path / "coder")(raw), started(raw))


L, WIDTH = 3, 4


def cross_layer(skip: bool) -> sk.SparseCoder:
    config = {"n_layers": L, "d_target": L * 5, "bandwidth": EPSILON, "skip": skip, **SPARSE}
    coder = sk.create("clt", d_in=L * WIDTH, d_sae=30, seed=0, **config)
    for name, parameter in coder.named_parameters():
        parameter.data = cases.normal(*parameter.shape, seed=len(name), scale=0.4)
    return coder.double()


def linear(coder: sk.SparseCoder, x: Tensor) -> Tensor:
    return torch.cat([x[:, i * WIDTH : (i + 1) * WIDTH] @ coder.W_skip[i].T for i in range(L)], 1)


def test_a_cross_layer_transcoder_with_a_skip() -> None:
    """Beside one without: its targets less what the skip says."""
    coder, plain = cross_layer(True), cross_layer(False)
    plain.load_state_dict({k: v for k, v in coder.state_dict().items() if k != "W_skip"})
    x, y = cases.normal(N, L * WIDTH, seed=1).double(), cases.normal(N, L * 5, seed=2).double()
    skip = linear(coder, x)
    torch.testing.assert_close(coder(x), plain(x) + skip)
    mine, theirs = coder.loss(x, y), plain.loss(x, y - skip.detach())
    torch.testing.assert_close(mine.total, theirs.total)
    torch.testing.assert_close(mine.reconstruction, coder(x))
    mine.total.backward()
    theirs.total.backward()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(coder.get_parameter(name).grad, parameter.grad)
    error = (mine.reconstruction - y).detach() * 2 / N
    for i in range(L):
        expected = error[:, i * 5 : (i + 1) * 5].T @ x[:, i * WIDTH : (i + 1) * WIDTH]
        torch.testing.assert_close(coder.W_skip.grad[i], expected)
    stream = coder.stream()
    for i, part in enumerate(x.chunk(L, dim=1)):
        stream.read(i, part)
        torch.testing.assert_close(stream.write(i), coder(x)[:, i * 5 : (i + 1) * 5].detach())


def test_folding_a_cross_layer_transcoder_with_a_skip() -> None:
    coder = cross_layer(True)
    input = Affine(3 * cases.normal(L * WIDTH, seed=2), 0.5 + cases.normal(L * WIDTH, seed=3).abs())
    target = Affine(cases.normal(L * 5, seed=4), torch.full((L * 5,), 0.37))
    x = (3 + 2 * cases.normal(N, L * WIDTH, seed=9)).double()
    y = target.invert(coder(input.apply(x)))
    coder.fold(input, target)
    torch.testing.assert_close(coder(x), y)
