"""Who is trained: a row of the table, a library, and the sparsity settings that come to an L0 around 24.

Penalties mean the same for this package and SAELens where their losses are the same, and with dictionary_learning after
its scale: λ / √192 of an L1 norm, λ / 192 of an L0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench.quality import papers
from bench.quality.budget import Budget, Job
from bench.quality.dictionary_learning import DictionaryLearning
from bench.quality.ours import Ours
from bench.quality.rows import Points
from bench.quality.sae_lens import SAELens
from bench.quality.sparsify import Sparsify
from bench.quality.trainee import Trainee

OURS, LENS, DL, SPARSIFY, PAPER = "sae_kernels", "sae_lens", "dictionary_learning", "sparsify", "paper"
D = 192
ENDS = (1, 3, 7, 15, 32)  # of matryoshka's prefixes, in 32nds of d_sae


@dataclass(frozen=True)
class Contender:
    """One of a row; `points` are what it learns from."""

    row: str
    library: str
    settings: tuple[float, ...]
    make: Callable[[Job], Trainee]
    points: Points = "residual"

    @property
    def name(self) -> str:
        """Of it in messages."""
        return f"{self.row}/{self.library}"


def contenders() -> Iterator[Contender]:
    """All of them."""
    yield from k_sparse()
    yield from jumprelu()
    yield from penalised()
    yield from transcoders()
    yield from several_layers()


def ours(row: str, settings: tuple[float, ...], keys: Callable[[Job], dict[str, Any]], **more: Any) -> Contender:
    """Of this package: `keys` of a job; `architecture` where it is not the row's name."""
    architecture, points = more.pop("architecture", row), more.pop("points", "residual")
    return Contender(row, OURS, settings, lambda job: Ours(job, architecture, {**more, **keys(job)}), points)


def lens(row: str, settings: tuple[float, ...], architecture: str, **keys: Any) -> Contender:
    """Of SAELens, with k."""
    return Contender(row, LENS, settings, lambda job: SAELens(job, architecture, {**k(job), **keys}, {}))


def lens_penalised(row: str, settings: tuple[float, ...], architecture: str, name: str, **keys: Any) -> Contender:
    """Of SAELens, with a coefficient of this name."""
    return Contender(row, LENS, settings, lambda job: SAELens(job, architecture, keys, {name: job.setting}))


def learned(row: str, settings: tuple[float, ...], trainer: str, keys: Callable[[Job], dict[str, Any]]) -> Contender:
    """Of dictionary_learning."""
    return Contender(row, DL, settings, lambda job: DictionaryLearning(job, trainer, keys(job)))


def k(job: Job) -> dict[str, Any]:
    """Active latents."""
    return {"k": round(job.setting)}


def rise(job: Job) -> dict[str, Any]:
    """Of a penalty."""
    return {"sparsity_warmup_steps": job.budget.sparsity_warmup}


def k_followed(job: Job) -> dict[str, Any]:
    """The same, with a running threshold of dictionary_learning's: its 1000 and 0.999 are for long runs."""
    return {"threshold_start_step": 0, "threshold_beta": 0.99, **k(job)}


def l0_target(job: Job) -> dict[str, Any]:
    """Of the quadratic loss."""
    return {"sparsity_loss": "quadratic", "l0_target": job.setting, "sparsity_coefficient": 192.0, **rise(job)}


def l1(job: Job) -> dict[str, Any]:
    """dictionary_learning's penalty."""
    return {"l1_penalty": job.setting / math.sqrt(D), **rise(job)}


def lens_l0_target(job: Job) -> SAELens:
    """SAELens' quadratic loss: its loss has 2/t (L0 − t)², ours λ/t² (L0 − t)²."""
    keys = {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": job.setting}
    return SAELens(job, "jumprelu", keys, {"l0": 96 / job.setting})


def penalty(job: Job) -> dict[str, Any]:
    """λ and its rise."""
    return {"sparsity_coefficient": job.setting, **rise(job)}


def k_sparse() -> Iterator[Contender]:
    """topk and its kin."""
    exact = (24.0,)
    yield ours("topk", exact, k)
    yield Contender("topk", SPARSIFY, exact, lambda job: Sparsify(job, k(job)))
    groups = {"activation": "groupmax"}  # one latent of each of k groups: nothing here is trained so
    yield Contender("groupmax", SPARSIFY, exact, lambda job: Sparsify(job, {**groups, **k(job)}))
    yield lens("topk", exact, "topk")
    yield learned("topk", exact, "top_k.TopKTrainer", k_followed)

    yield ours("batch_topk", (24.0, 27.0), k)
    yield lens("batch_topk", (22.0, 26.0), "batchtopk")
    yield learned("batch_topk", (28.0, 32.0), "batch_top_k.BatchTopKTrainer", k_followed)

    widths = [Budget().d_sae * end // ENDS[-1] for end in ENDS]
    shares = [(end - start) / ENDS[-1] for start, end in zip((0, *ENDS), ENDS, strict=False)]
    trainer = "matryoshka_batch_top_k.MatryoshkaBatchTopKTrainer"
    yield ours("matryoshka", (24.0, 27.0), k)
    yield lens("matryoshka", (22.0, 25.0), "matryoshka_batchtopk", matryoshka_widths=widths)
    yield learned("matryoshka", (28.0, 32.0), trainer, lambda job: {"group_fractions": shares, **k_followed(job)})


def jumprelu() -> Iterator[Contender]:
    """With its three losses."""
    row = "jumprelu l0"
    yield ours(row, (0.45, 0.75), penalty, architecture="jumprelu")
    yield lens_penalised(row, (4.0, 64.0), "jumprelu", "l0")

    row, around = "jumprelu quadratic", (22.0, 26.0)
    yield ours(row, around, l0_target, architecture="jumprelu")
    yield Contender(row, LENS, around, lens_l0_target)
    yield learned(row, around, "jumprelu.JumpReluTrainer", lambda job: {"target_l0": job.setting, **rise(job)})

    row = "jumprelu tanh"
    yield ours(row, (0.35, 0.45), penalty, architecture="jumprelu", sparsity_loss="tanh")
    anthropic = {
        "jumprelu_sparsity_loss_mode": "tanh",
        "jumprelu_bandwidth": 2.0,
        "jumprelu_init_threshold": 0.1,
        "pre_act_loss_coefficient": 3e-6,
        "jumprelu_ste_to_input": True,
    }
    yield lens_penalised(row, (0.3, 0.4), "jumprelu", "l0", **anthropic)


def penalised() -> Iterator[Contender]:
    """With an L1 norm."""
    yield ours("gated", (2.1, 2.6), penalty)
    shared = {"freeze_auxiliary": False, "subtract_b_dec": False}
    yield ours("gated shared", (1.6, 2.1), penalty, architecture="gated", **shared)
    yield lens_penalised("gated", (1.6, 2.0), "gated", "l1")
    yield learned("gated", (3.25, 4.0), "gdm.GatedSAETrainer", l1)

    yield ours("relu", (1.3, 1.6), penalty)
    yield lens_penalised("relu", (1.3, 1.6), "standard", "l1")
    yield learned("relu", (1.75, 2.5), "standard.StandardTrainerAprilUpdate", l1)

    yield ours("relu 2023", (2.25, 2.75), penalty, architecture="relu", variant="2023")
    yield learned("relu 2023", (2.25, 2.75), "standard.StandardTrainer", l1)


def transcoders() -> Iterator[Contender]:
    """Across one MLP."""
    for row in ("transcoder", "skip_transcoder"):
        skip = {"transcode": True, "skip_connection": row == "skip_transcoder"}
        yield ours(row, (24.0, 28.0), k, points="mlp")
        yield Contender(row, SPARSIFY, (24.0, 28.0), partial(_sparsify_transcoder, skip), "mlp")
    row = "jumprelu_transcoder tanh"
    yield ours(row, (0.11, 0.15), penalty, architecture="jumprelu_transcoder", sparsity_loss="tanh", points="mlp")
    yield Contender(row, PAPER, (0.2, 0.24), papers.Transcoder, "mlp")


def _sparsify_transcoder(keys: dict[str, Any], job: Job) -> Sparsify:
    return Sparsify(job, {**keys, **k(job)})


def several_layers() -> Iterator[Contender]:
    """Three layers side by side; no library here trains these."""
    yield ours("crosscoder", (1.25, 1.75), penalty, n_layers=3, points="residuals")
    yield Contender("crosscoder", PAPER, (1.25, 1.75), papers.Crosscoder, "residuals")
    yield ours("clt", (0.15, 0.6), penalty, n_layers=3, points="mlps")
    yield Contender("clt", PAPER, (0.6, 0.8), lambda job: papers.CrossLayer(job, epsilon=1.0), "mlps")
