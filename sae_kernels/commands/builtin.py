"""The commands of this package, as a plugin."""

from __future__ import annotations

from ..hookspecs import hookimpl
from ..specs import Command

SUMMARIES = {
    "demo": "train, evaluate, look at and steer with an SAE and a transcoder, on a small model that comes along",
    "train": "train a sparse coder from a TOML configuration",
    "cache": "write activations to disk once, to train on them many times",
    "evaluate": "evaluate a training run: L0, FVU, CE recovered, dead latents, …",
    "steer": "generate text with and without edits of a trained run's latents",
    "convert": "weights from one library's format to another's",
    "bench": "time encode and decode against dense PyTorch on this machine",
    "info": "versions, instruction sets, threads, backends, plugins: what to paste into a bug report",
    "plugins": "plugins that are loaded, from where, and what failed",
}


@hookimpl
def sae_kernels_commands() -> list[Command]:
    """demo, train, cache, evaluate, steer, convert, bench, info, plugins."""
    return [
        Command(name, summary, f"{__package__}.{name}:configure", f"{__package__}.{name}:run")
        for name, summary in SUMMARIES.items()
    ]
