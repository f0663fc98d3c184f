"""This package's own trainer, a step at a time."""

from __future__ import annotations

from pathlib import Path

import torch

from bench.peers.problem import Problem
from sae_kernels.adapters.tensors import open_source, write_shard
from sae_kernels.train import Config, Run, start
from sae_kernels.train.denormals import flushed
from sae_kernels.train.random_state import Own
from sae_kernels.train.step import take_step


class Trainer:
    """What `sae-kernels train` does in a step of `architecture = "topk"` with its defaults, on a batch in memory."""

    def __init__(self, problem: Problem, folder: Path) -> None:
        shard, size = folder / "activations.safetensors", problem.size
        write_shard(shard, torch.cat([problem.x, problem.x]))  # a part of it is held out
        config = Config.from_dict(
            {
                "activations": {"adapter": "tensors", "path": str(shard)},
                "coder": {"architecture": "topk", "d_sae": size.d_sae, "k": size.k},
                "training": {
                    "steps": 100_000,
                    "batch_size": size.n,
                    "dtype": str(problem.dtype).removeprefix("torch."),
                    "optimizer": "adam_rows",
                },
                "output": {"dir": str(folder / "run")},
            }
        )
        source = open_source(path=shard)
        with (random := Own(config.coder.seed)):
            self._run: Run = start.begin(config, source, None, random)
        self._batch = start.on_device(self._run, *self._run.batches.next())

    def step(self) -> object:
        """Loss, gradients, Adam."""
        with flushed(torch.get_num_threads()):
            done = take_step(self._run, *self._batch)
        self._run.optimizer.zero_grad(set_to_none=True)  # as the others leave it
        return done
