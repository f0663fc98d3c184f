"""`torch.compile` as people call it: without `fullgraph`, and the first call of a process is the compiled one."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import torch
import sae_kernels as sk

torch.manual_seed(0)
W_enc, W_dec, x = torch.randn(96, 12), torch.randn(96, 12), torch.randn(40, 12)


for selection in (sk.Threshold(0.5), sk.BatchTopK(3)):

    def step(x, W_enc, W_dec):
        return sk.decode(sk.encode(x, W_enc, None, selection), W_dec).square().mean()

    found = []
    for run in (torch.compile(step, backend="eager"), step):
        weights = [W.clone().requires_grad_() for W in (W_enc, W_dec)]
        loss = run(x, *weights)
        found.append([loss.detach(), *torch.autograd.grad(loss, weights)])
    for mine, theirs in zip(*found):
        torch.testing.assert_close(mine, theirs)
print("same")
"""


@pytest.mark.slow  # starts a process, which imports the compiler
def test_ops_whose_outputs_have_any_number_of_slots() -> None:
    """The graph breaks at them; nothing of theirs is traced."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.stdout == "same\n", done.stderr[-3000:]
