"""`steer`: a language model with some latents edited."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ..adapters import LanguageModel
from ..adapters.hook_points import HookPoint, Replace
from ..architectures import SparseCoder
from ..errors import AdapterError, ArgumentError, ShapeError, describe
from .delta import reconstruction_delta
from .edits import Edit, check_edits

Points = str | tuple[str, ...]  # of an autoencoder, or (hook_in, hook_out)


@contextmanager
def steer(model: LanguageModel, coder: SparseCoder, points: Points, edits: Edit | Sequence[Edit]) -> Generator[None]:
    """Within the block, y → y + ŷ(edited codes) − ŷ(codes) at a hook point: the coder's error stays as it is.

        with steer(model, sae, "model.layers.3", Clamp.times_max(latent, table.max_activation[latent])):
            print(model.generate("The bridge", 40))

    `points`: the hook point of an autoencoder; (hook_in, hook_out) of a transcoder, whose codes come from
    what passed hook_in in the same forward pass. Several edits of one latent apply in order. A token that no
    edit changes keeps its activation bit for bit. Every position is edited, those of special tokens and of
    the prompt too.

    Raises:
        ArgumentError, IndexRangeError: edits or points that make no sense; a coder of several layers (crosscoder, clt).
        ShapeError: the hook points' widths are not the coder's.
        AdapterError (on running): hook_out is passed before hook_in.
    """
    if getattr(coder, "n_layers", 1) > 1:
        raise ArgumentError(
            f"{coder.architecture!r} reads {coder.n_layers} hook points at once, expected a coder of one: "
            "a latent of several layers can't be steered yet"
        )
    hook_in, hook_out = _pair(points)
    chosen = check_edits(edits, coder.d_sae)
    widths = model.d_of(hook_in), model.d_of(hook_out)
    if widths != (coder.d_in, coder.d_out):
        raise ShapeError(
            f"hook points {hook_in!r} and {hook_out!r} have {widths[0]} and {widths[1]} features, "
            f"the coder maps {coder.d_in} to {coder.d_out}"
        )
    if not chosen:
        yield
        return
    modes = [(module, module.training) for module in coder.modules()]
    coder.eval()
    try:
        with model.intervene(_replacements(coder, hook_in, hook_out, chosen)):
            yield
    finally:
        for module, training in modes:
            module.training = training


def _replacements(coder: SparseCoder, hook_in: str, hook_out: str, edits: list[Edit]) -> dict[str, Replace]:
    def edited(y: Tensor, x: Tensor) -> Tensor:
        return _edited(coder, edits, y, x)

    if HookPoint.parse(hook_in) == HookPoint.parse(hook_out):
        return {hook_out: lambda activation: edited(activation, activation)}
    seen: list[Tensor] = []

    def look(activation: Tensor) -> Tensor:
        seen[:] = [activation.clone()]  # a later in-place operation would change what was seen
        return activation

    def replace(activation: Tensor) -> Tensor:
        if not seen:
            raise AdapterError(f"hook points: {hook_out!r} is passed before {hook_in!r}, expected after")
        return edited(activation, seen.pop())

    return {hook_in: look, hook_out: replace}


@torch.no_grad()
def _edited(coder: SparseCoder, edits: list[Edit], y: Tensor, x: Tensor) -> Tensor:
    if y.shape[:-1].numel() != x.shape[:-1].numel():
        raise AdapterError(f"hook points: {describe(x)} in and {describe(y)} out, expected as many tokens")
    rows = x.reshape(-1, x.shape[-1]).to(coder.W_enc.device, coder.W_enc.dtype)
    delta, changed = reconstruction_delta(coder, rows, edits)
    flat = y.reshape(-1, y.shape[-1])
    delta, changed = delta.to(flat.device), changed.to(flat.device)
    sum = flat.to(torch.promote_types(flat.dtype, delta.dtype)) + delta
    return torch.where(changed[:, None], sum.to(flat.dtype), flat).view(y.shape)


def _pair(points: Points) -> tuple[str, str]:
    if isinstance(points, str):
        return points, points
    if isinstance(points, (tuple, list)) and len(points) == 2 and all(isinstance(point, str) for point in points):
        return points[0], points[1]
    raise ArgumentError(f"points = {points!r}, expected a hook point or a pair (hook_in, hook_out)")
