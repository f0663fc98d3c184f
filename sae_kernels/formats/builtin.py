"""The formats of this package, as a plugin."""

from __future__ import annotations

from ..hookspecs import hookimpl
from ..specs import Format

# module of this folder: the format's name, what it is, whether it is written
FORMATS = {
    "native": ("sae_kernels", "config.json + weights.safetensors, any architecture", True),
    "sae_lens": ("sae_lens", "SAELens: cfg.json + sae_weights.safetensors (read: before 6.0, too)", True),
    "sparsify": ("sparsify", "sparsify: cfg.json + sae.safetensors, a folder for each hook point", True),
    "dictionary_learning": ("dictionary_learning", "dictionary_learning: config.json + ae.pt", True),
    "circuit_tracer": ("circuit_tracer", "circuit-tracer: transcoders and cross-layer transcoders", True),
    "openai": ("openai", "OpenAI's sparse_autoencoder: a .pt file", True),
    "gemma_scope": ("gemma_scope", "Gemma Scope: params.npz", False),
    "gemma_scope_2": ("gemma_scope_2", "Gemma Scope 2: params.safetensors, or a file a layer (clt)", False),
}


@hookimpl
def sae_kernels_formats() -> list[Format]:
    """The package's own, and those of other libraries."""
    return [
        Format(
            name,
            summary,
            f"{__package__}.{module}:matches",
            f"{__package__}.{module}:load",
            f"{__package__}.{module}:save" if written else None,
        )
        for module, (name, summary, written) in FORMATS.items()
    ]
