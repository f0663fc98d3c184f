"""sparsify: SparseCoder, TopK."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
from typing import Any

import torch
from torch import Tensor, nn

from bench.peers.host import Call, Host, Learner, fill
from bench.peers.problem import Problem

AUXK_ALPHA = 1 / 32  # arXiv 2406.04093; sparsify's default is 0


class Trained(Learner):
    """As sparsify's `Trainer` does it with optimizer="adam", which needs a language model to read from."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self._optimizer = torch.optim.Adam(module.parameters(), lr=2e-4 / (module.num_latents / 2**14) ** 0.5)

    def loss(self, x: Tensor) -> Tensor:
        """FVU, and AuxK where a latent is dead: none is."""
        module: Any = self.module
        out = module(x, dead_mask=torch.zeros(module.num_latents, dtype=torch.bool))
        return out.fvu + AUXK_ALPHA * out.auxk_loss + out.multi_topk_fvu / 8

    def step(self, x: Tensor) -> object:
        """The norms of W_dec's rows, the loss, the gradient's part along them, Adam."""
        module: Any = self.module
        module.set_decoder_norm_to_unit_norm()
        loss = self.loss(x)
        loss.backward()
        module.remove_gradient_parallel_to_decoder_directions()
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss.detach()


class TopK(Host):
    """SparseCoder; Triton's decoder is for GPUs."""

    name, distribution = "sparsify", "eai-sparsify"

    def reader(self, problem: Problem) -> nn.Module:
        """An autoencoder."""
        os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")
        with contextlib.redirect_stdout(io.StringIO()):  # it prints when it is imported
            sparsify = importlib.import_module("sparsify")
        size = problem.size
        config = sparsify.SparseCoderConfig(num_latents=size.d_sae, k=size.k)
        coder = sparsify.SparseCoder(size.d, config, dtype=problem.dtype)
        fill(problem, coder.encoder.weight, coder.encoder.bias, coder.W_dec, coder.b_dec)
        return coder

    def reads(self, module: Any, x: Tensor) -> dict[str, Call]:
        """Its decode takes acts and indices."""
        with torch.no_grad():
            acts, indices, _ = module.encode(x)
        return {
            "encode": lambda: module.encode(x),
            "decode": lambda: module.decode(acts, indices),
            "forward": lambda: module(x),
        }

    def shown(self, result: Any) -> Tensor:
        """The acts sorted, since their order has no meaning; of a forward pass, the reconstruction."""
        if isinstance(result, Tensor):
            return result
        return result.top_acts.sort().values if hasattr(result, "top_acts") else result.sae_out

    def learner(self, problem: Problem) -> Learner:
        """The same class."""
        return Trained(self.reader(problem))
