"""circuit-tracer: SingleLayerTranscoder with JumpReLU, dense and sparse calls."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from bench.peers.host import Call, Host, fill
from bench.peers.problem import Problem


class Transcoder(Host):
    """About k active latents; training is not its business."""

    name, distribution = "circuit-tracer", "circuit-tracer"

    def reader(self, problem: Problem) -> nn.Module:
        """All latents have one threshold."""
        transcoders = importlib.import_module("circuit_tracer.transcoder.single_layer_transcoder")
        activations = importlib.import_module("circuit_tracer.transcoder.activation_functions")
        size = problem.size
        module = transcoders.SingleLayerTranscoder(
            size.d,
            size.d_sae,
            activations.JumpReLU(torch.full((size.d_sae,), problem.threshold, dtype=problem.dtype), 0.1),
            layer_idx=0,
            device=torch.device("cpu"),
            dtype=problem.dtype,
        )
        fill(problem, module.W_enc, module.b_enc, module.W_dec, module.b_dec)
        return module

    def reads(self, module: Any, x: Tensor) -> dict[str, Call]:
        """The sparse calls, which attribution makes, beside the usual ones."""
        with torch.no_grad():
            sparse = module.encode_sparse(x)[0]
        return {
            **super().reads(module, x),
            "encode_sparse": lambda: module.encode_sparse(x),
            "decode_sparse": lambda: module.decode_sparse(sparse),
        }

    def shown(self, result: Any) -> Tensor:
        """Dense acts, or the reconstruction."""
        first = result[0] if isinstance(result, tuple) else result
        return first.to_dense() if first.is_sparse else first
