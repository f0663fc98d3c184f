"""Multi-TopK, batch_topk and matryoshka: loss and every gradient against dense float64 arithmetic written here."""

from __future__ import annotations

import pytest
import torch
from support.compare import assert_close, best, rms_ratio
from torch import Tensor

import sae_kernels as sk
from bench import cases
from sae_kernels.kernels import OPS

D, M, K, K_AUX, N = 12, 40, 5, 6, 32
ALPHA = 1 / 32
PREFIXES = (3, 17, 18, 40)
# name: (architecture, its keys)
KINDS = {
    "multi": ("topk", {"multi_topk": True}),
    "multi beyond d_sae": ("topk", {"multi_topk": True, "k": 13}),
    "multi skip": ("transcoder", {"multi_topk": True, "skip": True, "d_target": 9}),
    "batch": ("batch_topk", {}),
    "matryoshka": ("matryoshka", {"prefixes": PREFIXES}),
    "one prefix": ("matryoshka", {"prefixes": (M,)}),
}
DEAD = {
    "none": None,
    "some": lambda: torch.arange(M) % 3 == 0,
    "fewer than k_aux": lambda: torch.arange(M) < 2,
    "all": lambda: torch.ones(M, dtype=torch.bool),
}
# pre-acts, and which latents are dead
SCENARIOS = [
    ("ordinary", "none"),
    ("ordinary", "all"),
    ("few positive", "fewer than k_aux"),
    ("ties", "some"),
    ("dead latents", "some"),
]


def mask(dead: str) -> Tensor | None:
    """Made where the test makes its tensors."""
    make = DEAD[dead]
    return None if make is None else make()


def coder(kind: str) -> sk.SparseCoder:
    """With weights that no initialisation has: every parameter matters."""
    name, keys = KINDS[kind]
    made = sk.create(name, **{"d_in": D, "d_sae": M, "k": K, "k_aux": K_AUX, "seed": 0, **keys})
    for i, parameter in enumerate(made.parameters()):
        parameter.data = cases.normal(*parameter.shape, seed=30 + i, scale=0.4)
    return made


def prepared(kind: str, scenario: str) -> tuple[sk.SparseCoder, Tensor, Tensor | None]:
    """(coder, x, target or None for x)."""
    made = coder(kind)
    with torch.no_grad():
        if scenario == "few positive":
            made.b_enc -= 2.5
        if scenario == "dead latents":
            made.b_enc[::3] = -100
        if scenario == "ties":  # integer pre-acts, and each latent twice
            for parameter in made.parameters():
                parameter.copy_((parameter * 4).round().clamp(-2, 2))
            made.W_enc[1::2], made.b_enc[1::2] = made.W_enc[::2].clone(), made.b_enc[::2].clone()
    x = cases.integers(N, D, seed=1).clamp(-2, 2) if scenario == "ties" else cases.normal(N, D, seed=1)
    return made, x, cases.normal(N, 9, seed=2) if "skip" in kind else None


def of_rows(z: Tensor, k: int, among: Tensor | None = None) -> Tensor:
    """Dense acts: the k largest of each row (among some latents), through a ReLU that passes nothing at 0."""
    allowed = list(range(z.shape[1])) if among is None else among.nonzero().flatten().tolist()
    mask = torch.zeros_like(z, dtype=torch.bool)
    for n, row in enumerate(z.detach().tolist()):
        mask[n, [allowed[i] for i in best([row[a] for a in allowed], k)]] = True
    return torch.where(mask & (z > 0), z, 0)


def of_batch(z: Tensor, k: int) -> Tensor:
    """Dense acts: the k·N largest of the batch."""
    mask = torch.zeros(z.numel(), dtype=torch.bool)
    mask[best(z.detach().flatten().tolist(), k * len(z))] = True
    return torch.where(mask.reshape(z.shape) & (z > 0), z, 0)


def expected(
    kind: str, p: dict[str, Tensor], x: Tensor, y: Tensor, dead: Tensor | None
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """(acts, total, terms) by the formulas of 2406.04093, 2412.06410 and 2503.17547."""
    z = (x if "W_skip" in p else x - p["b_dec"]) @ p["W_enc"].T + p["b_enc"]
    skipped = x @ p["W_skip"].T if "W_skip" in p else 0
    spread = ((y - y.mean(0)) ** 2).sum()
    k = KINDS[kind][1].get("k", K)

    def reconstruction(acts: Tensor, end: int = M) -> Tensor:
        return acts[:, :end] @ p["W_dec"][:end] + p["b_dec"] + skipped

    def fvu(found: Tensor) -> Tensor:
        return ((y - found) ** 2).sum() / spread

    acts = of_rows(z, k) if "multi" in kind else of_batch(z, k)
    found = reconstruction(acts)
    terms = {"fvu": fvu(found)}
    total = terms["fvu"]
    if "multi" in kind:
        terms["multi_topk"] = fvu(reconstruction(of_rows(z, min(4 * k, M))))
        total = total + terms["multi_topk"] / 8
    if kind == "matryoshka":
        for end in PREFIXES[:-1]:
            terms[f"fvu_{end}"] = fvu(reconstruction(acts, end))
            total = total + terms[f"fvu_{end}"]
    if dead is not None and dead.any():
        aux = of_rows(z, min(K_AUX, int(dead.sum())), dead)
        terms["auxk"] = (((y - found).detach() - aux @ p["W_dec"]) ** 2).sum() / spread
        total = total + ALPHA * terms["auxk"]
    return acts, total, terms


def in_double(made: sk.SparseCoder, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    exact = {key: p.detach().double().requires_grad_() for key, p in made.named_parameters()}
    return exact, x.detach().double().requires_grad_()


@pytest.mark.parametrize(("scenario", "dead"), SCENARIOS)
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_every_gradient(backend: str, kind: str, dead: str, scenario: str) -> None:
    made, x, y = prepared(kind, scenario)
    x.requires_grad_()
    exact, exact_x = in_double(made, x)
    acts, total, terms = expected(kind, exact, exact_x, exact_x if y is None else y.double(), mask(dead))
    with sk.use(backend):
        loss = made.loss(x, y, dead=mask(dead))
        grads = torch.autograd.grad(loss.total, [x, *made.parameters()])
        assert_close(made.encode(x).dense().detach(), acts.detach())
    assert_close(loss.codes.dense().detach(), acts.detach())
    assert_close(loss.total.detach(), total.detach(), factor=2)
    assert loss.parts.keys() == terms.keys()
    for name, term in terms.items():
        assert_close(loss.parts[name], term.detach(), factor=2)
    wanted = torch.autograd.grad(total, [exact_x, *exact.values()])
    for mine, theirs in zip(grads, wanted, strict=True):
        assert_close(mine, theirs, factor=3)


def test_the_scenarios_are_what_they_claim() -> None:
    """Ties at the boundary of k·N, and fewer positive pre-acts than k·N and than k in a row."""
    made, x, _ = prepared("batch", "ties")
    z = (x - made.b_dec) @ made.W_enc.T + made.b_enc
    ordered = z.flatten().sort(descending=True).values
    assert ordered[K * N - 1] == ordered[K * N] > 0
    made, x, _ = prepared("batch", "few positive")
    positive = (((x - made.b_dec) @ made.W_enc.T + made.b_enc) > 0).sum(1)
    assert 0 < positive.sum() < K * N
    assert (positive == 0).any()
    assert (positive > K).any()


@pytest.mark.parametrize("kind", KINDS)
def test_in_float64(kind: str) -> None:
    made, x, y = prepared(kind, "ordinary")
    made, x = made.double(), x.double()
    exact, _ = in_double(made, x)
    _, total, _ = expected(kind, exact, x, x if y is None else y.double(), mask("some"))
    loss = made.loss(x, None if y is None else y.double(), dead=mask("some")).total
    torch.testing.assert_close(loss.double(), total, rtol=1e-6, atol=0)  # the loss itself is a float32 number
    for parameter, mine in zip(exact.values(), torch.autograd.grad(loss, list(made.parameters())), strict=True):
        assert mine.dtype == torch.float64
        assert rms_ratio(mine, torch.autograd.grad(total, parameter, retain_graph=True)[0]) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_under_bfloat16_autocast(backend: str, kind: str) -> None:
    """Integers that bfloat16 holds: the selection is exact, ties and all, and the rest is rounded."""
    made, x, y = prepared(kind, "ties")
    exact, exact_x = in_double(made, x)
    acts, total, _ = expected(kind, exact, exact_x, exact_x if y is None else y.double(), mask("some"))
    with sk.use(backend), torch.autocast(x.device.type, torch.bfloat16):
        loss = made.loss(x, y, dead=mask("some"))
    loss.total.backward()
    assert loss.codes.values.dtype == torch.bfloat16
    assert loss.total.dtype == torch.float32
    assert_close(loss.codes.dense().detach(), acts.detach())
    assert rms_ratio(loss.total.detach(), total.detach()) < 0.01
    for parameter, theirs in zip(made.parameters(), torch.autograd.grad(total, list(exact.values())), strict=True):
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert rms_ratio(parameter.grad, theirs) < 0.02
    if "threshold" in dict(made.named_buffers()):
        assert made.get_buffer("threshold").item() == acts[acts > 0].min().item()


@pytest.mark.parametrize("kind", ["batch", "matryoshka"])
def test_auxk_gradient_reaches_the_encoder_alone_of_the_dead(backend: str, kind: str) -> None:
    """None to the residual it fits, none to b_dec as a bias."""
    x = cases.normal(N, D, seed=1)
    dead = mask("some")
    assert dead is not None
    grads = {}
    with sk.use(backend):
        for with_aux in (True, False):
            made = coder(kind)
            made.loss(x, dead=dead if with_aux else None).total.backward()
            grads[with_aux] = {key: p.grad for key, p in made.named_parameters()}
    extra = {key: grads[True][key] - grads[False][key] for key in grads[True]}
    assert (extra["W_enc"][dead].abs().sum(1) > 0).any(), "AuxK sends the encoder no gradient"
    for key in ("W_enc", "W_dec"):
        assert extra[key][~dead].abs().max() < 1e-6, f"AuxK reaches the {key} rows of living latents"
    through_encoder = -(extra["b_enc"].double() @ coder(kind).W_enc.double())
    torch.testing.assert_close(extra["b_dec"].double(), through_encoder, rtol=1e-3, atol=1e-5)


def test_all_of_topk_is_one_pass_over_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[int]] = []
    real = OPS["linear_topk"]

    def counted(x, W, b, ks, *rest, **on):
        calls.append(ks)
        return real(x, W, b, ks, *rest, **on)

    monkeypatch.setitem(OPS, "linear_topk", counted)
    coder("multi").loss(cases.normal(N, D), dead=mask("some")).total.backward()
    assert calls == [[K, 4 * K, K_AUX]]
