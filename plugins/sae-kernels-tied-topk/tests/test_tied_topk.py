"""The plugin registers, its gradient is right, it learns, it survives a round trip."""

from __future__ import annotations

import sae_kernels_tied_topk
import torch

import sae_kernels as sk
from sae_kernels.plugins import plugins


def registered() -> None:
    if "tied_topk" not in plugins().infos:  # installed, its entry point has done this
        plugins().register(sae_kernels_tied_topk, "tied_topk")


def test_gradient_of_the_tied_weight_is_the_sum_of_both_uses() -> None:
    registered()
    sae = sk.create("tied_topk", d_in=6, d_sae=20, k=3, seed=0, dtype=torch.float64)
    x = torch.randn(9, 6, dtype=torch.float64)
    sae.loss(x).total.backward()
    W = sae.W_enc.detach().clone().requires_grad_()
    z = x @ W.T
    keep = torch.zeros_like(z).scatter_(1, z.topk(3).indices, 1.0)
    (((z.relu() * keep) @ W - x).pow(2).sum(-1).mean()).backward()
    torch.testing.assert_close(sae.W_enc.grad, W.grad)


def test_it_learns_and_keeps_unit_rows() -> None:
    registered()
    generator = torch.Generator().manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(32, 16, generator=generator))
    x = torch.rand(512, 32, generator=generator).mul(torch.rand(512, 32, generator=generator) < 0.08) @ atoms
    sae = sk.create("tied_topk", d_in=16, d_sae=64, k=4, seed=0)
    sae.initialise(x, x)
    adam = torch.optim.Adam(sae.parameters(), lr=1e-2)
    first = sae.loss(x).total.item()
    for _ in range(60):
        adam.zero_grad()
        sae.loss(x).total.backward()
        adam.step()
        sae.after_step()
    assert sae.loss(x).total.item() < 0.5 * first
    torch.testing.assert_close(sae.W_enc.norm(dim=1), torch.ones(64))


def test_round_trip(tmp_path) -> None:
    registered()
    sae = sk.create("tied_topk", d_in=6, d_sae=20, k=3)
    sk.save(sae, tmp_path / "tied")
    x = torch.randn(4, 6)
    assert torch.equal(sk.load(tmp_path / "tied")(x), sae(x))
