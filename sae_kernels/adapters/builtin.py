"""The adapters that come with the package, registered as any plugin's are."""

from __future__ import annotations

from collections.abc import Iterable

from ..hookspecs import hookimpl
from ..specs import Adapter


@hookimpl
def sae_kernels_adapters() -> Iterable[Adapter]:
    """Where activations come from, by name."""
    return [
        Adapter(
            "huggingface",
            "a Hugging Face causal language model reading text",
            "sae_kernels.adapters.huggingface_source:open_source",
        ),
        Adapter("tensors", "safetensors shards on disk", "sae_kernels.adapters.tensors:open_source"),
        Adapter(
            "torch_module",
            "any torch.nn.Module on its inputs",
            "sae_kernels.adapters.torch_module:open_source",
        ),
    ]
