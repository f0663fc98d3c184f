"""`top_activations`: one pass over a source that keeps every latent's strongest tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import kernels as _kernels  # noqa: F401  (registers torch.ops.sae_kernels)
from ..adapters import ActivationBatch, ActivationSource
from ..architectures import SparseCoder
from ..codes import SparseCodes
from ..evaluate.stream import check_count, check_widths, inference, to_coder, token_batches
from .table import FeatureTable

_LABELS = ("ids", "sequence", "position")


def top_activations(
    coder: SparseCoder,
    source: ActivationSource,
    *,
    n: int = 10,
    max_tokens: int | None = 100_000,
    batch_tokens: int = 4096,
    progress: bool = False,
) -> FeatureTable:
    """Each latent's n strongest among a source's first `max_tokens` tokens (None: all), and its statistics.

    Memory: 12 n bytes a latent, 12 bytes a token of the source (its labels). The result does not depend on
    `batch_tokens` but through rounding in the encoder.

    Raises:
        ShapeError: the source's widths are not the coder's.
        ArgumentError: a count below 1, no `max_tokens` for a source that never ends. AdapterError: no tokens.
    """
    check_widths(coder, source)
    check_count(n=n)
    device = coder.W_enc.device
    values = torch.full((coder.d_sae, n), -torch.inf, device=device)
    tokens = torch.full((coder.d_sae, n), -1, dtype=torch.int64, device=device)
    firings = torch.zeros(coder.d_sae, dtype=torch.int64, device=device)
    sums = torch.zeros(coder.d_sae, dtype=torch.float64, device=device)
    labels: dict[str, list[Tensor]] = {name: [] for name in _LABELS}
    done = 0
    with inference(coder):
        for batch in token_batches(source, max_tokens, batch_tokens, progress, "features"):
            codes = coder.encode(to_coder(coder, batch.input))
            torch.ops.sae_kernels.latent_topn(values, tokens, *codes.flat(), done)
            _count(codes, firings, sums)
            _keep_labels(batch, labels)
            done += len(batch)
    values, tokens, firings, sums = (t.cpu() for t in (values, tokens, firings, sums))
    places = {name: _at(torch.cat(parts), tokens) for name, parts in labels.items() if parts}
    return FeatureTable(values, tokens, firings, sums, done, **places)


def _count(codes: SparseCodes, firings: Tensor, sums: Tensor) -> None:
    active = codes.values != 0
    latents = codes.indices[active].long()
    firings += torch.bincount(latents, minlength=codes.d_sae)
    sums += torch.bincount(latents, codes.values[active].double(), minlength=codes.d_sae)


def _keep_labels(batch: ActivationBatch, labels: dict[str, list[Tensor]]) -> None:
    for name, parts in labels.items():
        label: Tensor | None = getattr(batch, name)
        if label is not None:
            parts.append(label.to("cpu", torch.int32))


def _at(labels: Tensor, tokens: Tensor) -> Tensor:
    """The label of each token number; −1 for −1."""
    return torch.where(tokens >= 0, labels[tokens.clamp(min=0)].long(), -1)
