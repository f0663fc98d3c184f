"""dictionary_learning's coders and trainers of every kind, with weights that no initialisation has."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from support.peer import D

M, K, N = 96, 6, 40
CODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "relu": ("dictionary", "AutoEncoder", {}),
    "relu new": ("dictionary", "AutoEncoderNew", {}),
    "gated": ("dictionary", "GatedAutoEncoder", {}),
    "jumprelu": ("dictionary", "JumpReluAutoEncoder", {}),
    "topk": ("trainers.top_k", "AutoEncoderTopK", {"k": K}),
    "batchtopk": ("trainers.batch_top_k", "BatchTopKSAE", {"k": K}),
    "matryoshka": ("trainers.matryoshka_batch_top_k", "MatryoshkaBatchTopKSAE", {"k": K}),
}
TRAINERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "topk": ("top_k", "TopKTrainer", {}),
    "batchtopk": ("batch_top_k", "BatchTopKTrainer", {}),
    "matryoshka": (
        "matryoshka_batch_top_k",
        "MatryoshkaBatchTopKTrainer",
        {"group_fractions": [0.25, 0.25, 0.5], "group_weights": [0.5, 0.2, 0.3]},
    ),
}


def home(module: str) -> Any:
    """A module of the library."""
    return importlib.import_module(f"dictionary_learning.{module}")


def coder(kind: str, dtype: torch.dtype = torch.float64, threshold: float | None = 0.4, m: int = M) -> Any:
    """Of a kind; `threshold` for those that have one number."""
    module, name, keys = CODERS[kind]
    if kind == "matryoshka":
        keys = {**keys, "group_sizes": [m // 6, m // 3, m - m // 6 - m // 3]}
    torch.manual_seed(0)
    made = getattr(home(module), name)(D, m, **keys)
    with torch.no_grad():
        for key, parameter in made.named_parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
            if key == "threshold":
                parameter.uniform_(-0.2, 0.8)
        if threshold is not None and kind in ("topk", "batchtopk", "matryoshka"):
            made.threshold.fill_(threshold)
    return made.to(dtype)


def lowered(coder: Any, by: float) -> Any:
    """The coder with fewer positive pre-acts."""
    with torch.no_grad():
        for name in ("encoder.bias", "b_enc", "gate_bias"):
            if name in dict(coder.named_parameters()):
                coder.get_parameter(name).sub_(by)
    return coder


def trainer(kind: str, dtype: torch.dtype = torch.float64, m: int = M, **keys: Any) -> Any:
    """A trainer whose latents die after three batches of N."""
    module, name, more = TRAINERS[kind]
    settings: dict[str, Any] = {
        "steps": 20,
        "activation_dim": D,
        "dict_size": m,
        "k": K,
        "layer": 0,
        "lm_name": "none",
        "warmup_steps": 2,
        "threshold_start_step": 3,
        "threshold_beta": 0.5,
        "lr": 3e-2,
        "seed": 0,
        "device": "cpu",
    }
    made = getattr(home(f"trainers.{module}"), name)(**{**settings, **more, **keys})
    made.ae.to(dtype)  # in place: the optimiser knows the parameters
    made.dead_feature_threshold = 3 * N
    return made


def batches(n: int, steps: int = 10) -> list[Tensor]:
    """Directions that come and go, so that latents die and come back."""
    random = torch.Generator().manual_seed(3)
    directions = torch.randn(16, D, generator=random, dtype=torch.float64)
    out = []
    for step in range(steps):
        used = directions[: 4 if 1 <= step < 7 else 16]
        out.append(torch.rand(n, len(used), generator=random, dtype=torch.float64) @ used + 0.5)
    return out
