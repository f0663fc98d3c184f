"""batch_topk's threshold: how it runs, when it is used, and that nothing on the way to disk changes it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.compare import assert_close
from support.planted import toy, train
from support.runs import Rows
from torch import Tensor

import sae_kernels as sk
from bench import cases
from sae_kernels.architectures._affine import Affine
from sae_kernels.evaluate import evaluate

D, M, K, N = 16, 48, 4, 64
KINDS = {"batch_topk": {}, "matryoshka": {"prefixes": (6, 20, M)}}
kinds = pytest.mark.parametrize("kind", KINDS)


def coder(kind: str = "batch_topk", **keys: object) -> sk.SparseCoder:
    return sk.create(kind, **{"d_in": D, "d_sae": M, "k": K, "seed": 0, **KINDS[kind], **keys})


def theta(made: sk.SparseCoder) -> Tensor:
    return made.get_buffer("threshold")


def acts(made: sk.SparseCoder, x: Tensor) -> Tensor:
    """All ReLU'd pre-acts, dense float64."""
    return ((x - made.b_dec).double() @ made.W_enc.double().T + made.b_enc.double()).relu().detach()


def least_kept(made: sk.SparseCoder, x: Tensor) -> float:
    positive = acts(made, x).flatten().sort(descending=True).values[: K * len(x)]
    return positive[positive > 0].min().item()


@kinds
@pytest.mark.parametrize("decay", [0.999, 0.3, 0.0])
def test_it_is_the_running_mean_of_the_smallest_kept_act(backend: str, kind: str, decay: float) -> None:
    made = coder(kind, threshold_decay=decay)
    assert theta(made).item() == -1
    expected = -1.0
    with sk.use(backend):
        for t in range(12):
            x = cases.normal(N, D, seed=t)
            made.loss(x)
            least = least_kept(made, x)
            beta = 0.0 if t == 0 else min(decay, (1 + t) / (10 + t))
            expected = beta * expected + (1 - beta) * least
            assert theta(made).item() == pytest.approx(expected, rel=1e-5)


@kinds
def test_in_eval_mode_it_decides_alone(backend: str, kind: str) -> None:
    """Each token for itself, in any leading shape; in training mode the batch decides."""
    made = coder(kind)
    x = cases.normal(N, D, seed=1)
    with sk.use(backend):
        made.loss(cases.normal(N, D, seed=2))
        assert made.encode(x).l0().sum() == K * N
        made.eval()
        codes = made.encode(x.reshape(4, N // 4, D))
        alone = made.encode(x[7])
    dense = acts(made, x)
    expected = torch.where(dense > theta(made), dense, 0)
    assert_close(codes.dense().reshape(N, M).detach(), expected)
    assert_close(alone.dense().detach(), expected[7])
    assert codes.lead_shape == (4, N // 4)
    assert len(set(codes.l0().flatten().tolist())) > 1, "rows of one length: k a row would give the same"


@kinds
def test_before_the_first_batch_the_batch_decides_in_eval_mode_too(kind: str) -> None:
    made = coder(kind).eval()
    assert made.encode(cases.normal(N, D)).l0().sum() == K * N


def test_only_training_moves_it() -> None:
    made = coder()
    made.loss(cases.normal(N, D, seed=1))
    before = theta(made).clone()
    with torch.no_grad():
        made.loss(cases.normal(N, D, seed=2))
    made.encode(cases.normal(N, D, seed=2))
    made.eval()
    made.loss(cases.normal(N, D, seed=2))
    assert torch.equal(theta(made), before)


@pytest.mark.parametrize("rows", [N, 0], ids=["nothing positive", "no tokens"])
def test_a_batch_that_keeps_nothing_leaves_it(backend: str, rows: int) -> None:
    made = coder()
    x = cases.normal(N, D, seed=1)
    with sk.use(backend):
        made.loss(x)
        before = {name: buffer.clone() for name, buffer in made.named_buffers()}
        with torch.no_grad():
            made.b_enc -= 1000
        made.loss(x[:rows])
    for name, buffer in made.named_buffers():
        assert torch.equal(buffer, before[name])


@kinds
def test_it_stays_float32_at_least(kind: str) -> None:
    made = coder(kind)
    made.loss(cases.normal(N, D))
    before = theta(made).clone()
    assert torch.equal(made.bfloat16().get_buffer("threshold"), before)
    assert torch.equal(made.double().get_buffer("threshold"), before.double())
    assert theta(made.half()).dtype == torch.float32
    empty = coder(kind).to(device="meta", dtype=torch.float16)
    assert {b.dtype for b in empty.buffers()} == {b.dtype for b in empty.to_empty(device="cpu").buffers()}
    assert theta(empty).dtype == torch.float32


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_loaded(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    made = coder(kind)
    x = cases.normal(N, D)
    made.loss(x)
    made.loss(cases.normal(N, D, seed=1))
    made.to(dtype)
    sk.save(made, tmp_path / "coder")
    back = sk.load(tmp_path / "coder")
    assert not back.training
    assert theta(made) > 0
    for (name, mine), theirs in zip(back.state_dict().items(), made.state_dict().values(), strict=True):
        assert mine.dtype == theirs.dtype, name
        assert torch.equal(mine, theirs), name
    x = x.to(dtype)
    assert torch.equal(back.encode(x).dense(), made.eval().encode(x).dense())
    assert back.config == made.config
    # and it goes on as if it had never been away
    back.train().loss(x)
    made.train().loss(x)
    assert torch.equal(theta(back), theta(made))


@kinds
def test_folded_normalisation_scales_it(kind: str) -> None:
    made = coder(kind, b_dec_init="zero")
    raw = 3 + 2 * cases.normal(N, D, seed=3)
    input = Affine(torch.full((D,), 3.0), torch.full((D,), 0.37))
    x = input.apply(raw)
    made.loss(x)
    made.eval().double()
    before, inside = made(x.double()).detach(), theta(made).item()
    fired = made.encode(x.double()).dense() != 0
    made.fold(input, input)
    assert theta(made).item() == pytest.approx(inside / 0.37, rel=1e-6)
    assert torch.equal(made.encode(raw.double()).dense() != 0, fired)
    assert_close(made(raw.double()).float().detach(), input.invert(before), factor=50)


@pytest.mark.usefixtures("one_thread")
@kinds
def test_a_coder_learns_and_its_threshold_keeps_k_a_token(backend: str, kind: str) -> None:
    """On tokens it has not seen, by the metrics that a user reads."""
    held_out = toy(2048, seed=5000)
    with sk.use(backend):
        made = coder(kind)
        before, after = train(made)
        results = evaluate(made, Rows(held_out, lengths=[1024, 1024], n_blocks=2), metrics=["l0", "fvu"])["metrics"]
    assert after < 0.2 < before
    assert made.training
    assert results["l0"] == pytest.approx(K, rel=0.1)
    assert results["fvu"] < 0.2
