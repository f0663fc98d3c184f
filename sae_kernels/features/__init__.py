"""Features: what each latent responds to, and where."""

from __future__ import annotations

from .contexts import Context, contexts, format_contexts
from .pick import interesting
from .table import FeatureTable
from .top import top_activations

__all__ = ["Context", "FeatureTable", "contexts", "format_contexts", "interesting", "top_activations"]
