"""An encode's memory: never the (N, M) tensor, nor near it."""

from __future__ import annotations

import pytest
import torch

import sae_kernels as sk
from bench.gpu.problem import CASES, Problem

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("gpu")]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["topk", "threshold", "batch_topk"])
def test_an_encode_takes_a_tenth_of_the_pre_acts_at_most(case: str, dtype: torch.dtype, kind: str) -> None:
    problem = Problem(CASES[case], dtype, "uniform", torch.device("cuda"))
    k = problem.size.k
    selection = {"topk": sk.TopK(k), "threshold": sk.Threshold(problem.theta), "batch_topk": sk.BatchTopK(k)}[kind]
    inputs = problem.x, problem.W_enc, problem.b_enc
    with sk.use("triton"):
        sk.encode(*inputs, selection)  # compiles, and sets up what stays
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        codes = sk.encode(*inputs, selection)
        torch.cuda.synchronize()
    assert codes.values.numel() > 0
    peak, allowed = torch.cuda.max_memory_allocated() - before, problem.dense_bytes // 10
    assert peak <= allowed, f"{peak / 2**20:.0f} MiB, allowed {allowed / 2**20:.0f}"
