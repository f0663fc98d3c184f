"""Coders half of whose latents are active: when losses go through the batch in chunks, and what these hold in memory.

Values and gradients: `test_penalised_losses`, `test_layered_losses`, `test_losses_in_chunks`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.exact_losses import chunked
from support.no_dense import D, M, N, step_without_dense
from torch import Tensor

import sae_kernels as sk
from bench import cases
from sae_kernels.architectures import _by_tokens
from sae_kernels.architectures._later_codes import LaterCodes
from sae_kernels.architectures.relu import ReLUCoder
from sae_kernels.kernels import _pre_acts

pytestmark = pytest.mark.usefixtures("one_thread")

HALF = {"initial_density": 0.5}
CODERS = {
    "relu": ("relu", HALF),
    "relu-2023": ("relu", {"variant": "2023", **HALF}),
    "gated": ("gated", HALF),
    "gated-shared": ("gated", {"freeze_auxiliary": False, **HALF}),
    "jumprelu": ("jumprelu", {"threshold_init": 0.06}),
    "jumprelu-quadratic": ("jumprelu", {"threshold_init": 0.06, "sparsity_loss": "quadratic", "l0_target": 9}),
    "transcoder": ("transcoder", {"activation": "relu", **HALF}),
    "skip_transcoder": ("skip_transcoder", {"activation": "relu", **HALF}),
    "jumprelu_transcoder": ("jumprelu_transcoder", {"threshold_init": 0.06}),
    "crosscoder": ("crosscoder", {"n_layers": 2, **HALF}),
}
ONLY_SPARSE = {"clt": ("clt", {"n_layers": 2, "threshold_init": 0.06})}
kinds = pytest.mark.parametrize("kind", CODERS)
both = pytest.mark.parametrize("full", [False, True], ids=["sparse", "GEMMs"])


def half_full(kind: str, n: int = 64, d: int = 8, m: int = 96) -> tuple[sk.SparseCoder, Tensor]:
    """As training of the last ones begins; the others have biases for as much."""
    name, config = (CODERS | ONLY_SPARSE)[kind]
    coder = sk.create(name, d_in=d, d_sae=m, sparsity_coefficient=0.1, seed=0, **config)
    x = cases.normal(n, d)
    coder.initialise(x, x)
    for parameter in coder.parameters():
        if not parameter.any():
            parameter.data = cases.normal(*parameter.shape, seed=3, scale=0.1)
    return coder, x


def gradients(coder: sk.SparseCoder, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(coder.parameters())))


@pytest.mark.parametrize(("kind", "autocast"), [("relu", None), ("gated", torch.bfloat16), ("clt", None)])
def test_sparse_chunks_bound_memory(cpu: str, kind: str, autocast: torch.dtype | None) -> None:
    coder, x = half_full(kind, N, D, M)
    with chunked(False, slots=1 << 18), sk.use(cpu):
        watch = step_without_dense(coder, x, autocast=autocast)
        assert coder.encode(x).values.numel() > N * M / 4, "codes are not full"
    assert watch.largest <= max(_pre_acts.SCORES, 3 << 18)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["float32", "autocast"])
@kinds
def test_gemms_bound_memory(kind: str, autocast: torch.dtype | None) -> None:
    coder, x = half_full(kind, N, D, M)
    with chunked(True, pairs=1 << 20):
        watch = step_without_dense(coder, x, autocast=autocast)
    assert watch.largest == 1 << 20


@pytest.mark.parametrize("kind", ["relu", "gated", "clt"])
def test_how_full_codes_are_decides(kind: str) -> None:
    """And chunks hold about as many slots as are allowed."""
    coder, x = half_full(kind, 512, 16, 4096)
    active = coder.encode(x).values.numel()
    if kind == "clt":
        active *= 1.06  # those just below their thresholds, too
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_by_tokens, "_gemms_pay", lambda *_: False)
        assert _by_tokens._plan(coder, x) is None
        patch.setattr(_by_tokens, "_limits", lambda *_: (active // 7, 1 << 20))
        plan = _by_tokens._plan(coder, x)
    assert plan is not None
    assert not plan.full
    assert 0.7 < plan.rows * 7 / 512 < 1.2


def test_sparse_codes_are_left_alone() -> None:
    coder, x = half_full("relu", 512, 16, 4096)
    with torch.no_grad():
        coder.b_enc -= 2 * coder.W_enc.norm(dim=1)
    assert not isinstance(coder.loss(x).codes, LaterCodes)
    with torch.no_grad():
        coder.b_enc += 10
    assert _by_tokens._gemms_pay(coder, x, torch.float32, 4096)
    assert isinstance(coder.loss(x).codes, LaterCodes)
    with sk.use("reference"):  # a backend that was asked for does it
        assert not isinstance(coder.loss(x).codes, LaterCodes)


@both
@kinds
def test_bfloat16_stays_near(kind: str, full: bool) -> None:
    coder, x = half_full(kind)
    plain = coder.loss(x).total
    expected = gradients(coder, plain)
    with chunked(full), torch.autocast("cpu", torch.bfloat16):
        loss = coder.loss(x)
    assert loss.total.dtype == torch.float32
    assert loss.reconstruction.dtype == loss.codes.values.dtype == torch.bfloat16
    torch.testing.assert_close(loss.total.detach(), plain.detach(), rtol=0.03, atol=0)
    for name, mine, theirs in zip(dict(coder.named_parameters()), gradients(coder, loss.total), expected, strict=True):
        assert mine.dtype == torch.float32
        assert torch.cosine_similarity(mine.flatten(), theirs.flatten(), dim=0) > (0.8 if name == "log_theta" else 0.98)
    coder.bfloat16()
    with chunked(full):
        loss = coder.loss(x.bfloat16())
    loss.total.backward()
    assert loss.reconstruction.dtype == torch.bfloat16
    for parameter in coder.parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == parameter.dtype
        assert parameter.grad.isfinite().all()


@both
def test_a_loss_may_be_scaled_and_frozen_parts_stay(full: bool) -> None:
    coder, x = half_full("gated")
    expected = gradients(coder, coder.loss(x).total / 3)
    with chunked(full):
        for mine, theirs in zip(gradients(coder, coder.loss(x).total / 3), expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
        coder.W_dec.requires_grad_(False)
        coder.get_parameter("b_mag").requires_grad_(False)
        coder.loss(x).total.backward()
        for (name, parameter), theirs in zip(coder.named_parameters(), expected, strict=True):
            if name in ("W_dec", "b_mag"):
                assert parameter.grad is None
            else:
                torch.testing.assert_close(parameter.grad, 3 * theirs, rtol=1e-4, atol=1e-6)


@both
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", ["relu", "gated", "jumprelu"])
def test_without_gradients_none_are_computed(
    kind: str, mode: Callable[[], Any], full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    coder, x = half_full(kind)
    expected = coder.loss(x)
    monkeypatch.setattr(torch.autograd, "grad", lambda *_, **__: pytest.fail("gradients"))
    with chunked(full), mode():
        found = coder.loss(x)
        values = found.codes.values
    assert not found.total.requires_grad
    assert not values.requires_grad
    torch.testing.assert_close(found.total, expected.total.detach())
    torch.testing.assert_close(found.reconstruction, expected.reconstruction.detach(), rtol=1e-4, atol=1e-5)


@both
def test_gradients_are_there_once(full: bool) -> None:
    coder, x = half_full("relu")
    with chunked(full):
        total = coder.loss(x).total
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward"):
        total.backward()


@both
def test_codes_are_computed_when_looked_at(full: bool) -> None:
    coder, x = half_full("jumprelu")
    plain = coder.encode(x)
    with chunked(full):
        loss = coder.loss(x)
    assert isinstance(loss.codes, LaterCodes)
    assert (loss.codes.n_rows, loss.codes.d_sae, loss.codes.is_ragged) == (64, 96, True)
    assert "LaterCodes" in repr(loss.codes)
    torch.testing.assert_close(loss.codes.dense(), plain.dense().detach())
    torch.testing.assert_close(coder.decode(loss.codes.detach()), loss.reconstruction, rtol=1e-4, atol=1e-5)
    with chunked(full):
        loss = coder.loss(x)
    with torch.no_grad():
        coder.b_enc += 1
    assert torch.equal(loss.codes.l0(), plain.l0())  # what training asks after its step
    assert torch.equal(loss.codes.detach().fired(), plain.fired())


def test_a_subclass_that_encodes_otherwise_keeps_its_way() -> None:
    class Halved(ReLUCoder):
        def encode(self, x: Tensor) -> sk.SparseCodes:
            codes = super().encode(x)
            return codes.with_values(codes.values / 2)

    coder, x = half_full("relu")
    other = Halved(coder.config)
    other.load_state_dict(coder.state_dict())
    expected = other.loss(x)
    with chunked(True, slots=200):
        found = other.loss(x)
    assert isinstance(found.codes, LaterCodes)
    assert not torch.allclose(found.total, coder.loss(x).total)
    torch.testing.assert_close(found.total, expected.total)
    for mine, theirs in zip(gradients(other, found.total), gradients(other, expected.total), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("way", [lambda: chunked(True), lambda: chunked(False)], ids=["GEMMs", "sparse"])
def test_training_goes_down(way: Callable[[], object]) -> None:
    """The same steps as all at once, but for rounding."""
    after = []
    for chunks in (False, True):
        coder, x = half_full("relu")
        optimizer = torch.optim.SGD(coder.parameters(), lr=0.01)
        for _ in range(5):
            optimizer.zero_grad()
            if chunks:
                with way():  # pyright: ignore[reportGeneralTypeIssues]
                    loss = coder.loss(x)
            else:
                loss = coder.loss(x)
            loss.total.backward()
            optimizer.step()
        after.append(loss.total.item())
    assert after[1] == pytest.approx(after[0], rel=1e-4)
