"""The patches of this package, as a plugin."""

from __future__ import annotations

from ..hookspecs import hookimpl
from ..specs import Patch

# name, what it patches, its classes (as the patch's own module has them: nothing is imported to list them)
_PATCHES = (
    (
        "sparsify",
        "sparsify's SparseCoder: TopK autoencoders and transcoders",
        ("sparsify.sparse_coder:SparseCoder",),
    ),
)


@hookimpl
def sae_kernels_patches() -> list[Patch]:
    """sparsify."""
    return [
        Patch(name, summary, f"{__package__}.{name}:why_not", f"{__package__}.{name}:apply", classes)
        for name, summary, classes in _PATCHES
    ]
