"""sparsify's coders, with the step of its `Trainer` and optimizer="adam"."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
from typing import Any

import torch
from torch import Tensor

from bench.quality.budget import Job
from bench.quality.trainee import Scale, member, set_rate

AUXK_ALPHA = 1 / 32  # arXiv 2406.04093; its default is 0


class Sparsify:
    """`keys` are its `SparseCoderConfig`'s."""

    scale: Scale = "none"

    def __init__(self, job: Job, keys: dict[str, Any]) -> None:
        os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")
        with contextlib.redirect_stdout(io.StringIO()):  # it prints when it is imported
            library = importlib.import_module("sparsify")
        torch.manual_seed(job.seed)
        self.job = job
        self.coder = library.SparseCoder(job.d_in, library.SparseCoderConfig(num_latents=job.budget.d_sae, **keys))
        self.optimizer = torch.optim.Adam(self.coder.parameters())

    def step(self, step: int, x: Tensor, y: Tensor, dead: Tensor) -> Tensor:
        """Unit norms, FVU and AuxK, Adam."""
        unit = self.coder.cfg.normalize_decoder and not self.coder.cfg.transcode
        if step == 0:
            self.coder.b_dec.data = y.mean(0)
        if unit:
            self.coder.set_decoder_norm_to_unit_norm()
        out = self.coder(x, y, dead_mask=dead if dead.any() else None)
        self.optimizer.zero_grad()
        (out.fvu + AUXK_ALPHA * out.auxk_loss).backward()
        if unit:
            self.coder.remove_gradient_parallel_to_decoder_directions()
        set_rate(self.optimizer, self.job.rate(step))
        self.optimizer.step()
        return member(out.latent_indices.flatten(), len(dead))

    def infer(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Its forward pass."""
        out = self.coder(x)
        return (out.latent_acts > 0).sum(1), out.sae_out
