"""FVU at equal L0 of every architecture, trained on the demo model for a fixed budget, beside other libraries.

    python bench/quality.py runs/quality                  # train what is not there yet, then print the table
    python bench/quality.py runs/quality --only relu,gated --lr 1e-3
    python bench/quality.py runs/quality --table          # the table alone

Every contender sees the same rows in the same order, the same shape of learning rate and the same count of dead
latents, and takes its steps with its own library's code: `SparseCoder.loss` here; `training_forward_pass`, clipped,
with Adam (SAELens); `trainer.update` (dictionary_learning); `forward` and its normalisation, with Adam (sparsify).
Libraries that are not installed are left out. The inputs have the scale that each documents: E‖x‖ = √d (this package,
SAELens), E‖x‖² = 1 (dictionary_learning), as they are (sparsify). Measured on rows held out, by one code for all.

Each contender is trained with each of its sparsity settings; FVU at L0 = 24 is read from them by a line in log L0.
The learning rate is the better of `--lr` on seed 0, for each contender on its own. `RUNS/runs.jsonl` holds the runs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sae_kernels as sk
from sae_kernels.architectures._penalty import Penalised
from sae_kernels.demo.runs import configuration
from sae_kernels.train import Config
from sae_kernels.train.batches import Batches
from sae_kernels.train.schedule import lr_factor

L0 = 24.0
K = (16, 32)
ROWS, HELD_OUT = 160_000, 8_192
WARMUP, DECAY = 20, 0.2  # of the learning rate: steps, and the last part of all
EPS = 6.25e-10  # of Adam, here as in training
CLIP = 1.0  # largest norm of the gradients, where a penalty is paid: training's `grad_clip`


@dataclass(frozen=True)
class Budget:
    """What everybody gets."""

    d_sae: int = 768
    batch: int = 512
    steps: int = 300

    @property
    def sparsity_warmup(self) -> int:
        """Steps over which a penalty rises."""
        return self.steps // 5


@dataclass(frozen=True)
class Job:
    """One training run."""

    setting: float
    lr: float
    seed: int
    d_in: int
    d_out: int
    budget: Budget

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        return self.lr * lr_factor(step, self.budget.steps, WARMUP, DECAY)

    def ramp(self, step: int) -> float:
        """What a penalty is multiplied by."""
        return min(1.0, (step + 1) / self.budget.sparsity_warmup)


class Ours:
    """A coder of this package, with torch's Adam."""

    scale = "sqrt_d"

    def __init__(self, job: Job, architecture: str, keys: dict[str, Any]) -> None:
        self.job = job
        sizes = {"d_in": job.d_in, "d_sae": job.budget.d_sae}
        self.coder = sk.create(architecture, seed=job.seed, **sizes, **keys).train()
        self.optimizer = torch.optim.Adam(self.coder.parameters(), eps=EPS)

    def step(self, step: int, x: Tensor, y: Tensor, dead: Tensor) -> Tensor:
        """Loss, gradients, Adam; → bool (d_sae,), who fired."""
        if step == 0:
            self.coder.initialise(x, y)
        self.coder.on_step(step, self.job.budget.steps)
        loss = self.coder.loss(x, y, dead=dead)
        self.optimizer.zero_grad()
        loss.total.backward()
        self.coder.before_step()
        if isinstance(self.coder, Penalised):
            torch.nn.utils.clip_grad_norm_(self.coder.parameters(), CLIP)
        set_rate(self.optimizer, self.job.rate(step))
        self.optimizer.step()
        self.coder.after_step()
        return member(loss.codes.fired(), len(dead))

    def infer(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(active latents a token, reconstruction)."""
        codes = self.coder.eval().encode(x)
        return codes.l0(), self.coder.reconstruct(codes, x)


class SAELens:
    """A training SAE of SAELens, with the step of its trainer."""

    scale = "sqrt_d"

    def __init__(self, job: Job, architecture: str, keys: dict[str, Any], coefficients: dict[str, float]) -> None:
        from sae_lens.registry import get_sae_training_class  # pyright: ignore[reportMissingImports]

        torch.manual_seed(job.seed)
        self.job, self.coefficients = job, coefficients
        cls, config = get_sae_training_class(architecture)
        self.sae = cls(config(d_in=job.d_in, d_sae=job.budget.d_sae, **keys)).train()
        self.optimizer = torch.optim.Adam(self.sae.parameters())

    def step(self, step: int, x: Tensor, y: Tensor, dead: Tensor) -> Tensor:
        """As its SAETrainer's `_train_step`."""
        from sae_lens.saes.sae import TrainStepInput  # pyright: ignore[reportMissingImports]

        now = {name: value * self.job.ramp(step) for name, value in self.coefficients.items()}
        out = self.sae.training_forward_pass(TrainStepInput(x, now, dead, step, False))
        self.optimizer.zero_grad()
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(self.sae.parameters(), CLIP)
        set_rate(self.optimizer, self.job.rate(step))
        self.optimizer.step()
        return out.feature_acts.detach().to_dense().bool().any(0)

    def infer(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As the SAE it saves: after BatchTopK, with its running threshold."""
        acts, pre_acts = self.sae.eval().encode_with_hidden_pre(x)
        threshold = getattr(self.sae, "topk_threshold", None)
        if threshold is not None:
            acts = pre_acts.relu() * (pre_acts > threshold)
        acts = acts.to_dense()
        return acts.bool().sum(1), self.sae.decode(acts)


class DictionaryLearning:
    """A trainer of dictionary_learning."""

    scale = "unit"

    def __init__(self, job: Job, trainer: str, keys: dict[str, Any]) -> None:
        import dictionary_learning.trainers as trainers  # pyright: ignore[reportMissingImports]

        steps = job.budget.steps
        schedule = {"warmup_steps": WARMUP, "decay_start": int(steps * (1 - DECAY))}
        sizes = {"activation_dim": job.d_in, "dict_size": job.budget.d_sae, "layer": 3, "lm_name": "demo"}
        module = importlib.import_module(f"{trainers.__name__}.{trainer.split('.')[0]}")
        torch.manual_seed(job.seed)
        cls = getattr(module, trainer.split(".")[1])
        self.trainer = cls(steps=steps, lr=job.lr, device="cpu", **schedule, **sizes, **keys)

    def step(self, step: int, x: Tensor, y: Tensor, dead: Tensor) -> Tensor:
        """Its own step, with the dead counted as everywhere."""
        if hasattr(self.trainer, "num_tokens_since_fired"):
            self.trainer.num_tokens_since_fired = torch.where(dead, 10**8, 0)
        self.trainer.update(step, x.clone())
        since = getattr(self.trainer, "num_tokens_since_fired", None)
        return torch.ones_like(dead) if since is None else since == 0

    def infer(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Its dictionary's forward pass."""
        reconstruction, acts = self.trainer.ae.eval()(x, output_features=True)
        return acts.bool().sum(1), reconstruction


class Sparsify:
    """A coder of sparsify, with the step of its trainer (its Adam)."""

    scale = "none"

    def __init__(self, job: Job, keys: dict[str, Any]) -> None:
        os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")
        from sparsify import SparseCoder, SparseCoderConfig  # pyright: ignore[reportMissingImports]

        torch.manual_seed(job.seed)
        self.job = job
        self.coder = SparseCoder(job.d_in, SparseCoderConfig(num_latents=job.budget.d_sae, **keys))
        self.optimizer = torch.optim.Adam(self.coder.parameters())

    def step(self, step: int, x: Tensor, y: Tensor, dead: Tensor) -> Tensor:
        """Unit norms, FVU and AuxK, Adam."""
        unit = self.coder.cfg.normalize_decoder and not self.coder.cfg.transcode
        if step == 0:
            self.coder.b_dec.data = y.mean(0)
        if unit:
            self.coder.set_decoder_norm_to_unit_norm()
        out = self.coder(x, y, dead_mask=dead if dead.any() else None)
        self.optimizer.zero_grad()
        (out.fvu + out.auxk_loss / 32).backward()
        if unit:
            self.coder.remove_gradient_parallel_to_decoder_directions()
        set_rate(self.optimizer, self.job.rate(step))
        self.optimizer.step()
        return member(out.latent_indices.flatten(), len(dead))

    def infer(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Its forward pass."""
        out = self.coder(x)
        return (out.latent_acts > 0).sum(1), out.sae_out


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Of every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def member(latents: Tensor, d_sae: int) -> Tensor:
    """bool (d_sae,) of latents (n,)."""
    mask = torch.zeros(d_sae, dtype=torch.bool)
    mask[latents.long()] = True
    return mask


@dataclass(frozen=True)
class Contender:
    """Who is trained, in `row` of the table, and with which sparsity settings."""

    row: str
    library: str
    settings: tuple[float, ...]
    make: Callable[[Job], Any]

    @property
    def name(self) -> str:
        """Of it in files and messages."""
        return f"{self.row}/{self.library}"


def contenders() -> Iterator[Contender]:
    """All of them. Penalties mean the same for this package and SAELens where their losses are the same, and with
    dictionary_learning after its scale: λ / √192 of an L1 norm, λ / 192 of an L0."""
    lens, dl, us = SAELens, DictionaryLearning, Ours

    def ours(row: str, settings: tuple[float, ...], keys: Callable[[float], dict[str, Any]], name: str = "") -> Any:
        return Contender(row, "sae_kernels", settings, lambda job: us(job, name or row, keys(job.setting)))

    def other(row: str, library: str, settings: tuple[float, ...], make: Callable[[Job], Any]) -> Contender:
        return Contender(row, library, settings, make)

    def warm(job: Job) -> dict[str, int]:
        return {"sparsity_warmup_steps": job.budget.sparsity_warmup}

    def k(value: float) -> dict[str, int]:
        return {"k": int(value)}

    def penalty(**keys: Any) -> Callable[[float], dict[str, Any]]:
        return lambda value: {"sparsity_coefficient": value, "sparsity_warmup_steps": Budget().sparsity_warmup, **keys}

    L, D = "sae_lens", "dictionary_learning"
    threshold = {"threshold_start_step": 0, "threshold_beta": 0.99}  # its 1000 and 0.999 are for long runs
    fractions = [1 / 32, 2 / 32, 4 / 32, 8 / 32, 17 / 32]
    widths = [Budget().d_sae * part // 32 for part in (1, 3, 7, 15, 32)]
    yield ours("topk", K, k)
    yield other("topk", "sparsify", K, lambda job: Sparsify(job, k(job.setting)))
    yield other("topk", L, K, lambda job: lens(job, "topk", k(job.setting), {}))
    yield other("topk", D, K, lambda job: dl(job, "top_k.TopKTrainer", {**threshold, **k(job.setting)}))

    yield ours("batch_topk", K, k)
    yield other("batch_topk", L, K, lambda job: lens(job, "batchtopk", k(job.setting), {}))
    yield other(
        "batch_topk", D, K, lambda job: dl(job, "batch_top_k.BatchTopKTrainer", {**threshold, **k(job.setting)})
    )

    yield ours("matryoshka", K, k)
    nested = {"matryoshka_widths": widths}
    yield other("matryoshka", L, K, lambda job: lens(job, "matryoshka_batchtopk", {**k(job.setting), **nested}, {}))
    name, groups = "matryoshka_batch_top_k.MatryoshkaBatchTopKTrainer", {"group_fractions": fractions}
    yield other("matryoshka", D, K, lambda job: dl(job, name, {**groups, **threshold, **k(job.setting)}))

    row, some = "jumprelu l0", (0.25, 1.0)
    yield ours(row, some, penalty(), "jumprelu")
    yield other(row, L, (4.0, 64.0), lambda job: lens(job, "jumprelu", {}, {"l0": job.setting}))

    row, some = "jumprelu quadratic", K
    yield ours(row, some, lambda t: penalty(sparsity_loss="quadratic", l0_target=t)(192.0), "jumprelu")
    mode = {"jumprelu_sparsity_loss_mode": "quadratic"}
    yield other(
        row, L, some, lambda job: lens(job, "jumprelu", {**mode, "target_l0": job.setting}, {"l0": 96 / job.setting})
    )
    yield other(row, D, some, lambda job: dl(job, "jumprelu.JumpReluTrainer", {"target_l0": job.setting, **warm(job)}))

    row, some = "jumprelu tanh", (0.15, 0.4)
    yield ours(row, some, penalty(sparsity_loss="tanh"), "jumprelu")
    anthropic = {
        "jumprelu_sparsity_loss_mode": "tanh",
        "jumprelu_bandwidth": 2.0,
        "jumprelu_init_threshold": 0.1,
        "pre_act_loss_coefficient": 3e-6,
        "jumprelu_ste_to_input": True,
    }
    yield other(row, L, some, lambda job: lens(job, "jumprelu", anthropic, {"l0": job.setting}))

    row, some = "gated", (2.0, 4.0)
    yield ours(row, some, penalty())
    yield other(row, L, some, lambda job: lens(job, "gated", {}, {"l1": job.setting}))
    l1 = lambda job: {"l1_penalty": job.setting / math.sqrt(192), **warm(job)}  # noqa: E731
    yield other(row, D, some, lambda job: dl(job, "gdm.GatedSAETrainer", l1(job)))

    row, some = "relu", (1.5, 2.5)
    yield ours(row, some, penalty())
    yield other(row, L, some, lambda job: lens(job, "standard", {}, {"l1": job.setting}))
    yield other(row, D, some, lambda job: dl(job, "standard.StandardTrainerAprilUpdate", l1(job)))

    row, some = "relu 2023", (2.0, 4.0)
    yield ours(row, some, penalty(variant="2023"), "relu")
    yield other(row, D, some, lambda job: dl(job, "standard.StandardTrainer", l1(job)))

    for row in ("transcoder", "skip_transcoder"):
        skip = {"transcode": True, "skip_connection": row == "skip_transcoder"}
        yield ours(row, K, k)
        yield other(row, "sparsify", K, lambda job, skip=skip: Sparsify(job, {**skip, **k(job.setting)}))


def rows_of(architecture: str, folder: Path) -> dict[str, Tensor]:
    """Activations of the demo model: x, y to train on, x_held_out, y_held_out; kept in `folder`."""
    file = folder / f"{architecture}.pt"
    if not file.exists():
        config = Config.from_dict(configuration(architecture, folder / "none", ROWS, 0))
        rows: dict[str, Tensor] = {}
        for suffix, split, wanted in (("", "train", ROWS), ("_held_out", "heldout", HELD_OUT)):
            batches = Batches(config.activations.open(split=split), 1024)
            pairs = [batches.next() for _ in range(wanted // 1024)]
            rows["x" + suffix] = torch.cat([x for x, _ in pairs]).float()
            rows["y" + suffix] = torch.cat([y for _, y in pairs]).float()
        torch.save(rows, file)
    return torch.load(file)


def scaled(rows: dict[str, Tensor], scale: str) -> dict[str, Tensor]:
    """x and y, each multiplied by one number."""
    factors = {"x": 1.0, "y": 1.0}
    for side in factors:
        norms = rows[side].norm(dim=1)
        if scale == "sqrt_d":
            factors[side] = math.sqrt(rows[side].shape[1]) / float(norms.mean())
        elif scale == "unit":
            factors[side] = 1 / float(norms.square().mean().sqrt())
    return {name: value * factors[name[0]] for name, value in rows.items()}


def train(contender: Contender, job: Job, rows: dict[str, Tensor]) -> dict[str, Any]:
    """One run, and what it came to on the rows held out."""
    trainee = contender.make(job)
    rows = scaled(rows, trainee.scale)
    size, steps = job.budget.batch, job.budget.steps
    order = torch.randperm(len(rows["x"]), generator=torch.Generator().manual_seed(job.seed))
    unfired = torch.zeros(job.budget.d_sae)
    begun = time.perf_counter()
    for step in range(steps):
        batch = order[torch.arange(step * size, (step + 1) * size) % len(order)]
        fired = trainee.step(step, rows["x"][batch], rows["y"][batch], unfired >= steps // 4)
        unfired = torch.where(fired, 0, unfired + 1)
    seconds = time.perf_counter() - begun
    with torch.no_grad():
        x, y = rows["x_held_out"], rows["y_held_out"]
        l0, reconstruction = trainee.infer(x)
        fvu = (y - reconstruction).double().square().sum() / (y - y.mean(0)).double().square().sum()
    return {
        "row": contender.row,
        "library": contender.library,
        "setting": job.setting,
        "lr": job.lr,
        "seed": job.seed,
        "l0": float(l0.double().mean()),
        "fvu": float(fvu),
        "seconds": round(seconds, 1),
    }


def at_l0(runs: list[dict[str, Any]], l0: float = L0) -> float:
    """FVU at this L0, on the line in log L0 through the two runs nearest to it, one on each side where there are; nan
    with fewer than two, or more than a factor 1.5 beyond the last."""
    runs = sorted((run for run in runs if run["l0"] > 0), key=lambda run: run["l0"])
    if len(runs) < 2 or not runs[0]["l0"] / 1.5 <= l0 <= runs[-1]["l0"] * 1.5:
        return math.nan
    upper = min(max(1, sum(run["l0"] < l0 for run in runs)), len(runs) - 1)
    a, b = runs[upper - 1], runs[upper]
    part = math.log(l0 / a["l0"]) / math.log(b["l0"] / a["l0"])
    return a["fvu"] + part * (b["fvu"] - a["fvu"])


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown: a line for each contender."""
    lines = [
        "| architecture | library | lr | L0 of the runs | FVU at L0 24, by seed | mean |",
        "|---|---|---|---|---|---|",
    ]
    for row, library in sorted({(run["row"], run["library"]) for run in runs}):
        mine = [run for run in runs if (run["row"], run["library"]) == (row, library)]
        lr = best_lr(mine)
        mine = [run for run in mine if run["lr"] == lr]
        seeds = sorted({run["seed"] for run in mine})
        found = [at_l0([run for run in mine if run["seed"] == seed]) for seed in seeds]
        found = [value for value in found if not math.isnan(value)] or [math.nan]
        sparsity = ", ".join(f"{run['l0']:.0f}" for run in mine if run["seed"] == seeds[0])
        each = ", ".join(f"{value:.4f}" for value in found)
        lines.append(f"| {row} | {library} | {lr:g} | {sparsity} | {each} | {statistics.fmean(found):.4f} |")
    return "\n".join(lines)


def best_lr(runs: list[dict[str, Any]]) -> float:
    """Of seed 0, the rate with the least FVU at L0."""
    rates = sorted({run["lr"] for run in runs})
    found = {lr: at_l0([run for run in runs if run["lr"] == lr and run["seed"] == 0]) for lr in rates}
    return min(rates, key=lambda lr: (math.isnan(found[lr]), found[lr]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="rows of the table, or row/library, comma-separated")
    parser.add_argument("--lr", default="1e-3,3e-3", help="comma-separated")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--table", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    file = arguments.folder / "runs.jsonl"
    budget, only = Budget(), [each for each in arguments.only.split(",") if each]
    rates, seeds = [float(lr) for lr in arguments.lr.split(",")], [int(seed) for seed in arguments.seeds.split(",")]

    def done(contender: Contender) -> list[dict[str, Any]]:
        lines = file.read_text().splitlines() if file.exists() else []
        runs = [json.loads(line) for line in lines]
        return [run for run in runs if (run["row"], run["library"]) == (contender.row, contender.library)]

    for contender in [] if arguments.table else contenders():
        if only and contender.row not in only and contender.name not in only:
            continue
        if importlib.util.find_spec(contender.library) is None:
            print(f"{contender.name}: not installed")
            continue
        rows = rows_of("transcoder" if "transcoder" in contender.row else "topk", arguments.folder)
        sizes = rows["x"].shape[1], rows["y"].shape[1]
        for seed in seeds:
            for lr in rates if seed == seeds[0] else [best_lr(done(contender))]:
                for setting in contender.settings:
                    if any((r["setting"], r["lr"], r["seed"]) == (setting, lr, seed) for r in done(contender)):
                        continue
                    run = train(contender, Job(setting, lr, seed, *sizes, budget), rows)
                    print(json.dumps(run), flush=True)
                    with file.open("a") as out:
                        out.write(json.dumps(run) + "\n")
    print(table([json.loads(line) for line in file.read_text().splitlines()]))


if __name__ == "__main__":
    main()
