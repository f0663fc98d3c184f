"""One step of training, and the figures that describe it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..architectures import Loss
from ..errors import PluginError, TrainingError
from .gradients import clip
from .run import Run
from .schedule import lr_factor


def take_step(run: Run, x: Tensor, target: Tensor) -> tuple[list[Loss], Tensor]:
    """Loss, gradients, Adam; → the loss of each part of the batch (before the update, detached) and the norm of the
    gradients (before clipping).

    The batch goes through in `accumulate` equal parts, whose losses are averaged.

    Raises:
        TrainingError: loss or gradients are not finite; the weights are those of the step before.
    """
    training = run.config.training
    run.optimizer.zero_grad(set_to_none=True)
    run.coder.on_step(run.step, run.total_steps)
    n, dead = training.accumulate, run.dead()
    losses = []
    for part, part_target in zip(x.chunk(n), target.chunk(n), strict=True):
        losses.append(_backward(run, part, part if target is x else part_target, dead, n))
    run.coder.before_step()
    norm = clip(run.coder.parameters(), training.grad_clip)
    if not torch.isfinite(norm):
        raise TrainingError(f"the norm of the gradients is {float(norm):g}{_bad_values(x, target)}")
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(run)
    run.optimizer.step()
    run.coder.after_step()
    run.step += 1
    run.tokens += len(x)
    run.tokens_since_fired += len(x)
    for loss in losses:
        run.tokens_since_fired[loss.codes.fired()] = 0
    return losses, norm


def _backward(run: Run, x: Tensor, target: Tensor, dead: Tensor, n: int) -> Loss:
    """The loss of one of n parts, whose share of the gradients is added to what is there; detached."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=run.config.training.autocast == "bfloat16"):
        loss = run.coder.loss(x, target, dead=dead)
    if not isinstance(loss, Loss):
        raise PluginError(
            f"architecture {run.coder.architecture!r}: loss returned a {type(loss).__name__}, expected sae_kernels.Loss"
        )
    if not torch.isfinite(loss.total):
        terms = ", ".join(f"{name} = {float(value):g}" for name, value in loss.parts.items())
        raise TrainingError(f"the loss is {float(loss.total.detach()):g} ({terms}){_bad_values(x, target)}")
    (loss.total if n == 1 else loss.total / n).backward()
    return Loss(loss.total.detach(), loss.parts, loss.codes.detach(), loss.reconstruction.detach())


def learning_rate(run: Run) -> float:
    """The rate of the step that comes next."""
    training = run.config.training
    factor = lr_factor(
        run.step, run.total_steps, training.lr_warmup_steps, training.lr_decay_fraction, training.lr_schedule
    )
    return training.peak_lr(run.coder.d_sae) * factor


def measure(run: Run, losses: list[Loss], norm: Tensor, target: Tensor, lr: float) -> dict[str, float]:
    """The figures of the step just taken, on its batch of N tokens, before the update:

    fvu = Σ ‖y - ŷ‖² / Σ ‖y - ȳ‖², ȳ the batch's mean; l0 = active latents a token; dead = the fraction of
    latents that have not fired in the last `dead_after_tokens` tokens. Sums in float64. Of a batch that went through in
    parts, the losses are means over them.
    """
    y = target.detach().double()
    parts = y.chunk(len(losses))
    residual = sum(
        (part - loss.reconstruction.double()).square().sum() for part, loss in zip(parts, losses, strict=True)
    )
    active = sum(loss.codes.l0().double().sum() for loss in losses)
    terms = dict.fromkeys(name for loss in losses for name in loss.parts)
    figures = {
        "step": run.step,
        "tokens": run.tokens,
        "loss": _mean([loss.total for loss in losses]),
        **{f"loss/{name}": _mean([loss.parts[name] for loss in losses if name in loss.parts]) for name in terms},
        "fvu": float(residual / (y - y.mean(0)).square().sum()),
        "l0": float(active / len(y)),
        "dead": float(run.dead().double().mean()),
        "dead_after_tokens": run.config.training.dead_after_tokens,
        "lr": lr,
        "grad_norm": float(norm),
    }
    return figures if run.config.training.resample_every is None else {**figures, "resampled": run.resampled}


def _mean(values: list[Tensor]) -> float:
    return sum(map(float, values)) / len(values)


def require_finite_weights(run: Run) -> None:
    """Before a checkpoint: one with weights that are not finite would not be a good one."""
    for name, parameter in run.coder.named_parameters():
        if not torch.isfinite(parameter).all():
            raise TrainingError(f"the update made {name} not finite")


def _bad_values(*batch: Tensor) -> str:
    for name, values in zip(("input", "target"), batch, strict=True):
        if bad := int((~torch.isfinite(values)).sum()):
            return f"; {bad} values of the batch's {name} are not finite"
    return ""
