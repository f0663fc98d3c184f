"""Dead latents started anew from what the coder reconstructs badly."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from . import start
from .run import Run


def resample_if_due(run: Run) -> None:
    """After every `resample_every`-th step up to `resample_until`: latents that have not fired in `dead_after_tokens`
    tokens get a new start (`SparseCoder.resample`), each from a row of the next `resample_tokens` tokens drawn with
    probability ∝ ‖y − ŷ‖⁴, the square of its loss. The optimiser forgets their moments, the counters what they were.

    Rows are drawn without repetition: with fewer rows than dead latents, the rest wait for the next time. The data are
    read ahead, and trained on as if they had not been. What happens follows from weights, seed and step alone.

    Source: Bricken et al., Towards Monosemanticity (2023), appendix "Neuron resampling".
    """
    training = run.config.training
    until = run.total_steps // 2 if training.resample_until is None else training.resample_until
    if training.resample_every is None or run.step % training.resample_every or run.step > until:
        return
    dead = run.dead()
    latents = dead.nonzero().flatten()
    if not len(latents):
        return
    x, target, losses = _sample(run)
    chosen = _draw(losses, len(latents), seed=run.config.coder.seed + (run.step << 20))
    latents = latents[: len(chosen)]
    if not len(latents):
        return
    rows = chosen.to(x.device)
    run.coder.resample(latents, x[rows], target[rows], living=~dead)
    forget(run.optimizer, run.coder, latents)
    run.tokens_since_fired[latents] = 0
    run.resampled += len(latents)


def forget(optimizer: torch.optim.Optimizer, coder: torch.nn.Module, latents: Tensor) -> None:
    """Moments of these rows back to 0, in the state of every parameter that has a row a latent."""
    for parameter in coder.parameters():
        if parameter.shape[:1] == (coder.d_sae,):
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    value[latents] = 0.0


@torch.no_grad()
def _sample(run: Run) -> tuple[Tensor, Tensor, Tensor]:
    """(x, target, ‖y − ŷ‖² of each row as float64) of the rows that come next; the run's place in the data stays."""
    training = run.config.training
    ahead = copy.copy(run.batches)
    inputs, targets, losses, same = [], [], [], True
    while sum(map(len, inputs)) < training.resample_tokens:
        x, target = start.on_device(run, *ahead.next())
        with torch.autocast(x.device.type, torch.bfloat16, enabled=training.autocast == "bfloat16"):
            y = run.coder.reconstruct(run.coder.encode(x), x)
        inputs.append(x)
        targets.append(target)
        losses.append((target.double() - y.double()).square().sum(1))
        same = same and target is x
    n = training.resample_tokens
    input = torch.cat(inputs)[:n]
    return input, input if same else torch.cat(targets)[:n], torch.cat(losses)[:n]


def _draw(losses: Tensor, n: int, seed: int) -> Tensor:
    """Up to n different rows, with probability ∝ loss²; a row without loss, or with one that is not finite, never."""
    weights = torch.where(torch.isfinite(losses), losses, 0.0).cpu()
    weights = (weights / weights.max().clamp_min(torch.finfo(torch.float64).tiny)).square()
    n = min(n, int((weights > 0).sum()))
    if n == 0:
        return torch.zeros(0, dtype=torch.int64)
    random = torch.Generator().manual_seed(seed % 2**63)
    return torch.multinomial(weights, n, generator=random)
