"""`token_norm`: the coder inside on normalised tokens, its reconstruction brought back."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

import sae_kernels as sk
from bench import cases
from sae_kernels.errors import ConfigError
from sae_kernels.steer.delta import reconstruction_delta
from sae_kernels.steer.edits import Add

D, M, N, K = 12, 40, 32, 5


def made(norm: str = "layer_norm", coder: str = "topk", **config: object) -> sk.SparseCoder:
    config = config or {"k": K}
    return sk.create("token_norm", d_in=D, d_sae=M, coder=coder, coder_config=config, norm=norm, seed=0)


def normalised(x: Tensor, norm: str) -> tuple[Tensor, Tensor, Tensor]:
    if norm == "constant_norm":
        scale = x.norm(dim=-1, keepdim=True) / D**0.5
        return x / scale, torch.zeros_like(scale), scale
    mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
    return (x - mean) / (std + 1e-5), mean, std


@pytest.mark.parametrize("norm", ["layer_norm", "constant_norm"])
def test_beside_the_coder_inside(norm: str, tmp_path: Path) -> None:
    outer = made(norm).double()
    inner = copy.deepcopy(outer.coder)
    x = (3 + 2 * cases.normal(N, D, seed=1)).double()
    outer.initialise(x, x)
    inside, mean, scale = normalised(x, norm)
    inner.initialise(inside, inside)
    torch.testing.assert_close(outer.b_dec, inner.b_dec)
    assert torch.equal(outer.encode(x).dense(), inner.encode(outer.statistics(x)[0]).dense())
    torch.testing.assert_close(outer(x), inner(inside) * scale + mean)
    torch.testing.assert_close(outer(x.view(2, -1, D)).flatten(0, 1), outer(x))
    mine, theirs = outer.loss(x), inner.loss(inside)
    torch.testing.assert_close(mine.total, theirs.total)
    torch.testing.assert_close(mine.reconstruction, outer(x))
    mine.total.backward()
    theirs.total.backward()
    for name, parameter in inner.named_parameters():
        torch.testing.assert_close(outer.coder.get_parameter(name).grad, parameter.grad)
    for coder in (outer, inner):
        coder.before_step()
        coder.W_dec.data -= 0.1 * coder.W_dec.grad
        coder.after_step()
    torch.testing.assert_close(outer.W_dec, inner.W_dec)
    torch.testing.assert_close(outer.W_dec.detach().norm(dim=1), torch.ones(M).double())
    outer.metadata["model_name"] = "gpt2"
    sk.save(outer, tmp_path / "coder")
    again = sk.load(tmp_path / "coder")
    assert again.config == outer.config
    assert torch.equal(again(x), outer(x))


def test_an_edit_moves_the_reconstruction_in_the_scale_of_x() -> None:
    coder = made()
    x = 3 + 2 * cases.normal(N, D, seed=1)
    delta, _ = reconstruction_delta(coder, x, [Add(7, 2.0)])
    expected = 2.0 * coder.W_dec[7] * x.std(-1, keepdim=True)
    torch.testing.assert_close(delta, expected, atol=1e-4, rtol=1e-4)


def test_it_learns() -> None:
    coder = made()
    x = 3 + 2 * cases.normal(256, D, seed=1)
    coder.initialise(x, x)
    optimizer = torch.optim.Adam(coder.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = coder.loss(x, x).total
        loss.backward()
        coder.before_step()
        optimizer.step()
        coder.after_step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


def test_refused() -> None:
    with pytest.raises(ConfigError, match="unknown value of norm 'layernorm': did you mean 'layer_norm'"):
        made("layernorm")
    with pytest.raises(ConfigError, match="coder = 'token_norm', expected another"):
        made(coder="token_norm")
    with pytest.raises(ConfigError, match="coder = 'transcoder' has d_out = 9, expected d_in = 12"):
        made(coder="transcoder", k=K, d_target=9)
    with pytest.raises(ConfigError, match="k = 99"):
        made(k=99)
    x = cases.normal(N, D, seed=1)
    with pytest.raises(ConfigError, match="a target other than x"):
        made().loss(x, x + 1)
    assert not made().can_fold()
