"""What writers share: saying why a format cannot hold a coder, and what they read of one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..architectures import SparseCoder
from ..errors import FormatError


def cannot_hold(format: str, coder: SparseCoder, why: str) -> FormatError:
    """The error for a coder that would lose something."""
    return FormatError(f"format {format!r} cannot hold this {coder.architecture or type(coder).__name__!r}: {why}")


def parameters_of(coder: SparseCoder) -> dict[str, Tensor]:
    """Its parameters by name."""
    return dict(coder.named_parameters())


def config_of(coder: SparseCoder, name: str, default: Any = None) -> Any:
    """A key of its configuration, or the default where its architecture has none."""
    return getattr(coder.config, name, default)


def dtype_name(coder: SparseCoder) -> str:
    """`float32`: of the decoder's bias."""
    return str(coder.b_dec.dtype).removeprefix("torch.")


@torch.no_grad()
def threshold_of(format: str, coder: SparseCoder) -> Tensor:
    """θ (d_sae,) in the weights' dtype: that of each latent, or the running one of BatchTopK for all.

    Raises:
        FormatError: a BatchTopK coder that has seen no batch, which has none.
    """
    if coder.architecture in ("jumprelu", "jumprelu_transcoder"):
        theta: Tensor = coder.get_parameter("log_theta").exp()
    else:
        running = coder.get_buffer("threshold")
        if float(running) < 0:
            raise cannot_hold(format, coder, "its running threshold is not set yet; train it for a step")
        theta = running.expand(coder.d_sae)
    return theta.to(coder.b_dec.dtype).contiguous()
