"""The architectures of this package, as a plugin."""

from __future__ import annotations

from ..hookspecs import hookimpl
from ..specs import Architecture


@hookimpl
def sae_kernels_architectures() -> list[Architecture]:
    """topk and transcoder."""
    here = __package__
    return [
        Architecture("topk", "TopK sparse autoencoder with AuxK (2406.04093)", f"{here}.topk:TopKCoder"),
        Architecture(
            "batch_topk",
            "BatchTopK sparse autoencoder with AuxK, a threshold at inference (2412.06410)",
            f"{here}.batch_topk:BatchTopKCoder",
        ),
        Architecture(
            "matryoshka",
            "Matryoshka BatchTopK sparse autoencoder: nested prefixes (2503.17547)",
            f"{here}.matryoshka:MatryoshkaCoder",
        ),
        Architecture(
            "transcoder",
            "transcoder, TopK or ReLU with L1, optional linear skip (2406.11944, 2501.18823)",
            f"{here}.transcoder:Transcoder",
        ),
        Architecture(
            "skip_transcoder",
            "transcoder with a linear skip (2501.18823)",
            f"{here}.skip_transcoder:SkipTranscoder",
        ),
        Architecture(
            "crosscoder",
            "crosscoder of several layers, or of one layer of several models (Lindsey 2024)",
            f"{here}.crosscoder:Crosscoder",
        ),
        Architecture("clt", "cross-layer transcoder, JumpReLU (Ameisen 2025)", f"{here}.clt:CrossLayerTranscoder"),
        Architecture(
            "relu", "ReLU sparse autoencoder with L1, as of April 2024 or of 2023 (Anthropic)", f"{here}.relu:ReLUCoder"
        ),
        Architecture("gated", "Gated sparse autoencoder (2404.16014)", f"{here}.gated:GatedCoder"),
        Architecture(
            "jumprelu",
            "JumpReLU sparse autoencoder: L0, quadratic or tanh penalty (2407.14435, Anthropic 2025)",
            f"{here}.jumprelu:JumpReLUCoder",
        ),
        Architecture(
            "jumprelu_transcoder",
            "transcoder with JumpReLU, optional linear skip (Gemma Scope 2)",
            f"{here}.jumprelu_transcoder:JumpReLUTranscoder",
        ),
        Architecture(
            "token_norm",
            "another architecture behind a normalisation of each token (OpenAI, SAELens)",
            f"{here}.token_norm:TokenNorm",
        ),
    ]
