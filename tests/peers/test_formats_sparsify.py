"""sparsify's files: ours loaded by sparsify and its own loaded here compute the same, in both modes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.peer import peer

import sae_kernels as sk
from bench import cases

pytestmark = pytest.mark.peers
sparsify = peer("sparsify", "eai-sparsify")

D, N, K, ROWS = 12, 48, 5, 64
KINDS = {
    "sae": {},
    "multi": {"multi_topk": True},
    "transcoder": {"transcode": True},
    "skip": {"transcode": True, "skip_connection": True},
    "skip sae": {"skip_connection": True, "normalize_decoder": False},
}


def compare(mine: sk.SparseCoder, host: Any) -> None:
    x = cases.normal(ROWS, D, seed=3)
    theirs = host(x)
    for training in (False, True):
        mine.train(training)
        codes = mine.encode(x)
        if not host.cfg.multi_topk:  # whose sae_out is that of 4k latents
            torch.testing.assert_close(mine(x), theirs.sae_out, atol=2e-5, rtol=2e-5)
    acts, indices, _ = host.encode(x)
    dense = torch.zeros(ROWS, N).scatter_(1, indices, acts.detach())
    torch.testing.assert_close(codes.dense().detach(), dense, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(mine.loss(x).parts["fvu"], theirs.fvu.detach(), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    host = sparsify.SparseCoder(D, sparsify.SparseCoderConfig(num_latents=N, k=K, **KINDS[kind]))
    with torch.no_grad():
        for i, p in enumerate(host.parameters()):
            p.copy_(cases.normal(*p.shape, seed=30 + i, scale=0.4))
    host.save_to_disk(tmp_path / "theirs")
    mine = sk.load(tmp_path / "theirs")
    compare(mine, host)
    sk.save(mine, tmp_path / "ours", format="sparsify")
    again = sparsify.SparseCoder.load_from_disk(tmp_path / "ours")
    for field in KINDS[kind]:
        assert getattr(again.cfg, field) == getattr(host.cfg, field)
    compare(mine, again)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), host.parameters(), strict=True))


def test_bfloat16(tmp_path: Path) -> None:
    host = sparsify.SparseCoder(D, sparsify.SparseCoderConfig(num_latents=N, k=K), dtype=torch.bfloat16)
    host.save_to_disk(tmp_path / "theirs")
    mine = sk.load(tmp_path / "theirs")
    assert mine.W_enc.dtype == torch.bfloat16
    assert torch.equal(mine.W_enc, host.encoder.weight)
    sk.save(mine, tmp_path / "ours", format="sparsify")
    assert sparsify.SparseCoder.load_from_disk(tmp_path / "ours").dtype == torch.bfloat16
