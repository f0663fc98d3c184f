"""Sources and run directories without training."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

import sae_kernels as sk
from sae_kernels.adapters import ActivationBatch


@dataclass
class Rows:
    """A source of given rows in blocks of given lengths."""

    input: Tensor
    target: Tensor | None = None
    lengths: list[int] = field(default_factory=lambda: [10, 0, 25])
    n_blocks: int | None = 3

    def __post_init__(self) -> None:
        self.d_in = self.input.shape[1]
        self.d_out = self.d_in if self.target is None else self.target.shape[1]

    def block(self, index: int) -> ActivationBatch:
        """The block; the last is followed by the first."""
        input = self.input.split(self.lengths)[index % len(self.lengths)]
        if self.target is None:
            return ActivationBatch(input, input)
        return ActivationBatch(input, self.target.split(self.lengths)[index % len(self.lengths)])


def make_run(path: Path, activations: dict[str, Any], d_in: int) -> Path:
    """A directory as training leaves it, with an untrained coder."""
    sk.save(sk.create("topk", d_in=d_in, d_sae=32, k=4, seed=0), path / "coder")
    config = {"activations": activations, "coder": {"architecture": "topk"}, "training": {}, "output": {}}
    (path / "config.json").write_text(json.dumps(config))
    return path
