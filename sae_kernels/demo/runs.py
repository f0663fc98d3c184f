"""The demo's two training runs, as configurations anyone could have written in TOML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

MODEL = Path(__file__).parent / "model"
LAYER = "model.layers.3"
CONTEXT = 256


def configuration(architecture: str, directory: Path, tokens: int, seed: int) -> dict[str, Any]:
    """The tables of one run: `topk` on the residual stream, `transcoder` across the MLP of the same layer."""
    points = {
        "topk": {"hook_in": LAYER},
        "transcoder": {"hook_in": f"{LAYER}.mlp:in", "hook_out": f"{LAYER}.mlp:out"},
    }
    extra = {"topk": {}, "transcoder": {"skip": True}}
    return {
        "activations": {
            "adapter": "huggingface",
            "model": str(MODEL),
            "text": "python-stdlib",
            "max_tokens": max(2 * tokens, 50 * CONTEXT),
            "context_length": CONTEXT,
            "dtype": "float32",
            "local_files_only": True,
            "seed": seed,
            **points[architecture],
        },
        "coder": {"architecture": architecture, "d_sae": 4096, "k": 24, "seed": seed, **extra[architecture]},
        "training": {
            "tokens": tokens,
            "batch_size": 2048,
            "lr": 1e-3,
            "lr_warmup_steps": 20,
            "dead_after_tokens": tokens // 4,
            "checkpoint_every": 100,
        },
        "output": {"dir": str(directory)},
    }
