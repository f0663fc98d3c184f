"""What a loss in chunks gives beside its total: a reconstruction and codes that can be differentiated as ever."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support.exact_losses import chunked
from torch import Tensor

import sae_kernels as sk
from bench import cases
from sae_kernels.architectures import _by_tokens
from sae_kernels.architectures._later_codes import LaterCodes
from sae_kernels.kernels import _pre_acts

N, D, M = 33, 8, 40
MORE: dict[str, Callable[[sk.Loss], Tensor]] = {
    "reconstruction alone": lambda loss: (loss.reconstruction**3).sum(),
    "with the loss": lambda loss: 2 * loss.total + (loss.reconstruction**3).sum(),
    "codes": lambda loss: loss.total + loss.codes.values.sin().sum(),
}


def coder(kind: str) -> sk.SparseCoder:
    return sk.create(kind, d_in=D, d_sae=M, sparsity_coefficient=0.1, seed=0).double()


def gradients(sae: sk.SparseCoder, of: Callable[[sk.Loss], Tensor], in_chunks: bool) -> list[Tensor]:
    x = cases.normal(N, D).double().requires_grad_()
    loss = sae.loss(x)
    assert isinstance(loss.codes, LaterCodes) == in_chunks
    assert not loss.codes.detach().values.requires_grad
    return [*torch.autograd.grad(of(loss), [x, *sae.parameters()], materialize_grads=True, allow_unused=True)]


@pytest.mark.parametrize("full", [False, True], ids=["sparse", "gemms"])
@pytest.mark.parametrize("more", MORE)
@pytest.mark.parametrize("kind", ["relu", "gated"])
def test_gradients_through_more_than_the_total(kind: str, more: str, full: bool) -> None:
    sae = coder(kind)
    expected = gradients(sae, MORE[more], in_chunks=False)
    with chunked(full):
        found = gradients(sae, MORE[more], in_chunks=True)
    assert any(theirs.any() for theirs in expected)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-13)


def test_no_matrix_of_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """GEMMs take an eighth of the tokens at most, or a scratch that the kernels would take, too."""
    monkeypatch.setattr(_by_tokens, "_gemms_pay", lambda *_: True)
    sae = sk.create("relu", d_in=D, d_sae=4096, sparsity_coefficient=0.1, seed=0)
    for n in (17, 2000, 20_000):
        plan = _by_tokens._plan(sae, cases.normal(n, D))
        assert plan is not None
        assert plan.full
        assert plan.rows * sae.d_sae <= max(_pre_acts.SCORES, n * sae.d_sae // 8)
        assert plan.rows <= -(-n // 3)


def test_codes_asked_for_after_a_step_say_so() -> None:
    sae = coder("relu")
    with chunked(True):
        codes = sae.loss(cases.normal(N, D).double()).codes
    with torch.no_grad():
        sae.W_enc.mul_(0.5)
    with pytest.raises(RuntimeError, match="weights have changed"):
        _ = codes.values
