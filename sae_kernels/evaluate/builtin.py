"""The metrics that come with the package, registered as any plugin's are."""

from __future__ import annotations

from collections.abc import Iterable

from ..hookspecs import hookimpl
from ..specs import Metric


@hookimpl
def sae_kernels_metrics() -> Iterable[Metric]:
    """l0, fvu, mse, cosine, relative_norm, density."""
    return [
        Metric("l0", "active latents a token", "sae_kernels.evaluate.sparsity:L0"),
        Metric("fvu", "fraction of variance unexplained", "sae_kernels.evaluate.fidelity:Fvu"),
        Metric("mse", "squared error per token and feature", "sae_kernels.evaluate.fidelity:Mse"),
        Metric("cosine", "mean cosine of target and reconstruction", "sae_kernels.evaluate.fidelity:Cosine"),
        Metric("relative_norm", "length of the reconstruction", "sae_kernels.evaluate.fidelity:RelativeNorm"),
        Metric("density", "how often latents fire, and which never do", "sae_kernels.evaluate.sparsity:Density"),
    ]
