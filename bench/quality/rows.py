"""Activations of the demo model: what everybody is trained and measured on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from bench.quality.trainee import Scale
from sae_kernels.demo.runs import CONTEXT, MODEL
from sae_kernels.train.batches import Batches
from sae_kernels.train.parsing import parse_activations

Points = Literal["residual", "mlp", "residuals", "mlps"]
LAYER, LAYERS = 3, (2, 3, 4)
TRAIN, VALIDATION, TEST = 160_000, 8_192, 32_768


@dataclass(frozen=True)
class Rows:
    """x (rows, d_in) to train on, and what it is to be reconstructed as, y (rows, d_out); on `validation` defaults were
    chosen, `test` is what tables show. Layers stand side by side."""

    n_layers: int
    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    def scaled(self, scale: Scale) -> Rows:
        """x and y of each layer times one number, found on the rows to train on: E‖x‖ = √d ("sqrt_d"), E‖x‖² = 1
        ("unit"), 1 ("none")."""
        factors = [_factors(part, self.n_layers, scale) for part in self.train]

        def times(rows: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            x = rows[0] * factors[0]
            return x, x if rows[1] is rows[0] else rows[1] * factors[1]

        return Rows(self.n_layers, times(self.train), times(self.validation), times(self.test))


def _factors(rows: Tensor, n_layers: int, scale: Scale) -> Tensor:
    """(d,): of each feature."""
    d = rows.shape[1] // n_layers
    norms = rows.view(-1, n_layers, d).norm(dim=2)
    wanted = {
        "sqrt_d": math.sqrt(d) / norms.mean(0),
        "unit": 1 / norms.square().mean(0).sqrt(),
        "none": torch.ones(n_layers),
    }
    return wanted[scale].repeat_interleave(d)


def rows_of(points: Points, folder: Path) -> Rows:
    """Of hook points; kept in `folder`."""
    file = folder / f"{points}.pt"
    if not file.exists():
        torch.save(_read(points), file)
    n_layers = len(LAYERS) if points.endswith("s") else 1
    return Rows(n_layers, *((x, x if y is None else y) for x, y in torch.load(file)))


def _read(points: Points) -> list[tuple[Tensor, Tensor | None]]:
    layers = [f"model.layers.{layer}" for layer in (LAYERS if points.endswith("s") else (LAYER,))]
    table = {
        "adapter": "huggingface",
        "model": str(MODEL),
        "text": "python-stdlib",
        "max_tokens": 2 * TRAIN,
        "context_length": CONTEXT,
        "dtype": "float32",
        "local_files_only": True,
        "seed": 0,
        "hook_in": layers,
    }
    if points.startswith("mlp"):
        table["hook_in"], table["hook_out"] = ([f"{layer}.mlp:{side}" for layer in layers] for side in ("in", "out"))
    activations = parse_activations({"activations": table})
    parts = []
    for split, counts in (("train", (TRAIN,)), ("heldout", (VALIDATION, TEST))):
        batches = Batches(activations.open(split=split), 1024)
        for count in counts:
            pairs = [batches.next() for _ in range(-(-count // 1024))]
            if batches.position.block >= (batches.source.n_blocks or math.inf) and split == "heldout":
                raise ValueError(f"{split}: fewer rows than {count}")
            x = torch.cat([x for x, _ in pairs]).float()
            same = all(y is x for x, y in pairs)
            parts.append((x, None if same else torch.cat([y for _, y in pairs]).float()))
    return parts
