"""The patches of this package, as a plugin."""

from __future__ import annotations

from ..hookspecs import hookimpl
from ..specs import Patch

# name, what it patches, its classes (as the patch's own module has them: nothing is imported to list them)
_LENS = "sae_lens.saes."
_PATCHES = (
    (
        "sae_lens",
        "SAELens' SAEs and transcoders, their inference and training",
        tuple(
            _LENS + name
            for name in (
                "standard_sae:StandardSAE",
                "jumprelu_sae:JumpReLUSAE",
                "gated_sae:GatedSAE",
                "topk_sae:TopKSAE",
                "transcoder:Transcoder",
                "transcoder:SkipTranscoder",
                "transcoder:JumpReLUTranscoder",
                "transcoder:JumpReLUSkipTranscoder",
                "topk_sae:TopKTrainingSAE",
                "batchtopk_sae:BatchTopKTrainingSAE",
                "matryoshka_batchtopk_sae:MatryoshkaBatchTopKTrainingSAE",
                "standard_sae:StandardTrainingSAE",
                "gated_sae:GatedTrainingSAE",
                "jumprelu_sae:JumpReLUTrainingSAE",
            )
        ),
    ),
    (
        "sparsify",
        "sparsify's SparseCoder: TopK autoencoders and transcoders",
        ("sparsify.sparse_coder:SparseCoder",),
    ),
    (
        "dictionary_learning",
        "dictionary_learning's coders, and the training steps of its top-k family",
        tuple(
            f"dictionary_learning.{name}"
            for name in (
                "dictionary:AutoEncoder",
                "dictionary:AutoEncoderNew",
                "dictionary:GatedAutoEncoder",
                "dictionary:JumpReluAutoEncoder",
                "trainers.top_k:AutoEncoderTopK",
                "trainers.batch_top_k:BatchTopKSAE",
                "trainers.matryoshka_batch_top_k:MatryoshkaBatchTopKSAE",
                "trainers.top_k:TopKTrainer",
                "trainers.batch_top_k:BatchTopKTrainer",
                "trainers.matryoshka_batch_top_k:MatryoshkaBatchTopKTrainer",
            )
        ),
    ),
    (
        "circuit_tracer",
        "circuit-tracer's per-layer transcoders and sets of them",
        tuple(
            f"circuit_tracer.transcoder.single_layer_transcoder:{name}"
            for name in ("SingleLayerTranscoder", "TranscoderSet")
        ),
    ),
)


@hookimpl
def sae_kernels_patches() -> list[Patch]:
    """sae_lens, sparsify, dictionary_learning, circuit_tracer."""
    return [
        Patch(name, summary, f"{__package__}.{name}:why_not", f"{__package__}.{name}:apply", classes)
        for name, summary, classes in _PATCHES
    ]
