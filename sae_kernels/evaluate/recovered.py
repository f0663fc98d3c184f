"""CE recovered: how much of a language model's skill survives the coder's reconstruction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..adapters import LanguageModel, LanguageSource
from ..architectures import SparseCoder
from ..errors import AdapterError, ArgumentError
from .bootstrap import CLUSTERS, ClusterSums, Resamples
from .splice import Run, with_coder, with_constant
from .stream import check_count, check_widths, inference

ABLATIONS = ("zero", "mean")


def check_ablation(ablation: str) -> None:
    """Raise ArgumentError for an ablation there is not."""
    if ablation not in ABLATIONS:
        raise ArgumentError(f"ablation = {ablation!r}, expected one of {', '.join(map(repr, ABLATIONS))}")


def ce_recovered(
    coder: SparseCoder,
    source: LanguageSource,
    *,
    max_tokens: int | None = None,
    ablation: str = "zero",
    mean: Tensor | None = None,
    forward_sequences: int = 4,
    bootstrap: int = 1000,
    progress: bool = False,
) -> dict[str, Any]:
    """(CE_ablated − CE_sae) / (CE_ablated − CE_orig), and the same with KL from the model as it is.

    The model runs three times on `source.sequences`, in order: as it is; with what leaves `hook_out`
    replaced by the reconstruction (of that activation for an autoencoder; computed from what passed
    `hook_in` in the same forward pass for a transcoder); and with it replaced by zeros (`ablation="zero"`)
    or by `mean` (`"mean"`).

    Activations at special tokens (bos, eos, padding) are left alone in all three: the coder never saw them.
    CE is the mean next-token cross-entropy, in nats, over the positions whose *next* token is not special; a
    special token may stand before it. KL is E[KL(p_orig ‖ p)] over the same positions. Probabilities are
    float32, sums float64. A figure whose denominator is 0 is NaN.

    `max_tokens`: whole sequences are taken until they hold so many tokens that are not special. "intervals" are of
    95 % confidence, by `bootstrap` resamples of the sequences (0: none).

    Raises:
        ShapeError: the source's widths are not the coder's.
        ArgumentError: an unknown ablation, no `mean` for the mean ablation, a count below 1.
        AdapterError: the sequences hold no token to predict; hook points that do not fit, see `splice`.
    """
    check_widths(coder, source)
    check_ablation(ablation)
    check_count(max_tokens=max_tokens, forward_sequences=forward_sequences)
    if ablation == "mean" and mean is None:
        raise ArgumentError("ablation = 'mean', expected `mean`, a vector (d_out,)")
    model = source.model
    constant = mean if ablation == "mean" and mean is not None else torch.zeros(coder.d_out)
    runs = {
        "sae": with_coder(coder, source.hook_in, source.hook_out),
        "ablated": with_constant(constant, source.hook_out),
    }
    special = torch.tensor(sorted(model.special_ids), dtype=torch.int64)
    sums, present = ClusterSums(), torch.zeros(CLUSTERS, dtype=torch.bool)
    n_sequences = replaced = 0

    sequences = _enough(source.sequences.cpu(), special, max_tokens)
    with (
        inference(coder),
        tqdm(total=len(sequences), unit="seq", desc="CE recovered", disable=not progress) as bar,
    ):
        for ids in sequences.split(forward_sequences):
            ids = ids.long()
            keep = ~torch.isin(ids, special)
            cluster = torch.arange(n_sequences, n_sequences + len(ids)) % CLUSTERS
            present[cluster] = True
            sums.add(cluster, _losses(model, runs, ids, keep))
            n_sequences += len(ids)
            replaced += int(keep.sum())
            bar.update(len(ids))
    total = sums.columns().sum(0, keepdim=True)
    if total.numel() == 0 or total[0, -1] == 0:
        raise AdapterError("the sequences have no token to predict, expected some that are not special")
    found: dict[str, Any] = {
        "ablation": ablation,
        "hook_in": source.hook_in,
        "hook_out": source.hook_out,
        "sequences": n_sequences,
        "replaced_tokens": replaced,
        "predicted_tokens": int(total[0, -1]),
        **{name: float(value) for name, value in _figures(total).items()},
    }
    resamples = Resamples(present, bootstrap)
    if intervals := resamples.intervals(sums.columns(), _figures):
        found |= {"intervals": intervals, "bootstrap": resamples.describe("sequences")}
    return found


def _losses(model: LanguageModel, runs: dict[str, Run], ids: Tensor, keep: Tensor) -> Tensor:
    """(sequences, 6) float64: Σ −log p(next token) as it is, with the coder, ablated; Σ KL of the latter two; tokens
    predicted."""
    nll, log_p = _next_token(model.logits(ids), ids, keep)
    columns, divergences = [nll], []
    for run in runs.values():
        nll, log_q = _next_token(run(model, ids, keep), ids, keep)
        columns.append(nll)
        divergences.append([_kl(p, q) for p, q in zip(log_p, log_q, strict=True)])
    return torch.tensor([*columns, *divergences, keep[:, 1:].sum(1).tolist()], dtype=torch.float64).mT


def _figures(sums: Tensor) -> dict[str, Tensor]:
    """The figures of sums (…, 6) as `_losses` gives them; NaN where a denominator is 0."""
    orig, sae, ablated, kl_sae, kl_ablated = (sums[:, :5] / sums[:, 5:]).unbind(1)
    return {
        "ce_orig": orig,
        "ce_sae": sae,
        "ce_ablated": ablated,
        "ce_recovered": _quotient(ablated - sae, ablated - orig),
        "kl_sae": kl_sae,
        "kl_ablated": kl_ablated,
        "kl_recovered": _quotient(kl_ablated - kl_sae, kl_ablated),
    }


def _quotient(numerator: Tensor, denominator: Tensor) -> Tensor:
    return torch.where(denominator == 0, torch.nan, numerator / denominator)


def _enough(sequences: Tensor, special: Tensor, max_tokens: int | None) -> Tensor:
    """The first sequences, so many that they hold `max_tokens` that are not special."""
    if max_tokens is None:
        return sequences
    held = (~torch.isin(sequences.long(), special)).sum(1).cumsum(0)
    return sequences[: int((held < max_tokens).sum()) + 1]


def _next_token(logits: Tensor, ids: Tensor, keep: Tensor) -> tuple[list[float], list[Tensor]]:
    """Σ −log p(next token) of each sequence, and the log-probabilities behind it, one (wide) tensor a sequence."""
    totals, kept = [], []
    for row, tokens, counted in zip(logits, ids.to(logits.device), keep.to(logits.device), strict=True):
        log_p = torch.log_softmax(row[:-1][counted[1:]].float(), dim=-1)
        totals.append(-float(log_p.gather(1, tokens[1:][counted[1:], None]).double().sum()))
        kept.append(log_p)
    return totals, kept


def _kl(log_p: Tensor, log_q: Tensor) -> float:
    """Σ KL(p ‖ q) over positions; what p rules out (a masked vocabulary entry) adds nothing."""
    p = log_p.exp()
    return float(torch.where(p > 0, p * (log_p - log_q), 0.0).sum(dtype=torch.float64))
