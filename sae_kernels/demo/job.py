"""The demo: the package's main job on real input, printed for someone who sees it for the first time."""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..adapters import LanguageSource
from ..architectures import SparseCoder
from ..errors import ConfigError
from ..evaluate import evaluate_run, table
from ..evaluate.run import open_heldout
from ..features import contexts, format_contexts, interesting, top_activations
from ..formats import load
from ..measure import Row, against_torch
from ..measure import table as timing_table
from ..ops import TopK, explain
from ..train import Config, train
from .runs import LAYER, MODEL, configuration
from .steering import Steered, demonstrate

EVALUATION_TOKENS = 20_000
PROMPT = "def "


def heading(text: str) -> None:
    """A line that stands out."""
    print(f"\n\033[1m{text}\033[0m" if _terminal() else f"\n== {text}", flush=True)


def _terminal() -> bool:
    return sys.stdout.isatty()


@contextmanager
def timed(seconds: dict[str, float], what: str) -> Iterator[None]:
    """Adds what the block took to `seconds[what]`."""
    start = time.perf_counter()
    yield
    seconds[what] = seconds.get(what, 0.0) + time.perf_counter() - start


def run(directory: Path, tokens: int, seed: int, resume: bool = False) -> None:
    """Train, evaluate, show features, steer, time, and sum up; everything is written below `directory`."""
    if not (MODEL / "config.json").is_file():
        raise ConfigError(f"{MODEL}: the embedded language model is missing from this installation")
    seconds: dict[str, float] = {}
    results: dict[str, Any] = {}
    print(
        f"A language model of 3.7M parameters that reads Python, on your own standard library; activations at {LAYER}."
    )
    for architecture in ("topk", "transcoder"):
        where = directory / architecture
        config = Config.from_dict(configuration(architecture, where, tokens, seed))
        heading(f"Training: {architecture}, {tokens:,} tokens  ({where})")
        with timed(seconds, "train"):
            outcome = train(config, resume=resume, progress=True).outcome
        if outcome == "interrupted":
            print("interrupted; sae-kernels demo --keep goes on from here")
            raise KeyboardInterrupt
        heading(f"Evaluating: {architecture}")
        with timed(seconds, "evaluate"):
            results[architecture] = evaluate_run(where, max_tokens=EVALUATION_TOKENS, progress=True)
        print(table(results[architecture]))

    sae = load(directory / "topk" / "coder")
    source, _ = open_heldout(configuration("topk", directory / "topk", tokens, seed)["activations"])
    assert isinstance(source, LanguageSource)
    heading("Features: where some latents of the SAE are strongest")
    with timed(seconds, "features"):
        features = top_activations(sae, source, n=12, max_tokens=EVALUATION_TOKENS, progress=True)
        chosen = interesting(features, 8) or interesting(features, 8, min_firings=1, max_density=1.0)
        for latent in chosen[:4]:
            print(f"latent {latent}, active on {100 * float(features.density[latent]):.2f} % of the tokens")
            print(textwrap.indent(format_contexts(contexts(features, source, latent, width=8, n=3)), "  "))
    heading("Steering: one latent clamped while the model writes")
    with timed(seconds, "steer"):
        steered = demonstrate(source, sae, features, PROMPT, seed=seed)
    print(f"latent {steered.edit.latent} is strongest here")
    print(textwrap.indent(format_contexts(contexts(features, source, steered.edit.latent, width=8, n=3)), "  "))
    _show_steering(steered)

    heading("Kernels: what ran, and what plain PyTorch takes for the same")
    x = torch.cat([source.block(i).input for i in range(2)])[:4096].float()
    print(_explanation(sae, x))
    with timed(seconds, "time"):
        rows = _timing(sae, x)
    print(timing_table(rows))
    _summary(directory, results, rows, steered, seconds)


def _explanation(sae: SparseCoder, x: torch.Tensor) -> str:
    return str(explain("encode", x, sae.W_enc, sae.b_enc, TopK(sae.config.to_dict()["k"])))


def _timing(sae: SparseCoder, x: torch.Tensor) -> list[Row]:
    return against_torch(x - sae.b_dec.detach(), sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, sae.config.to_dict()["k"])


def _show_steering(steered: Steered) -> None:
    print(f"latent {steered.edit.latent}, clamped to {steered.edit.value:.1f}, makes likelier as the next token:")
    print("  " + "   ".join(f"{p.token!r} {p.before:.1%} → {p.after:.1%}" for p in steered.promoted))
    for label, text in (("without", steered.before), ("with", steered.after)):
        print(f"--- {label} it")
        print(textwrap.indent(PROMPT + text, "    "))


def _summary(
    directory: Path, results: dict[str, Any], rows: list[Row], steered: Steered, seconds: dict[str, float]
) -> None:
    heading("Summary")
    print(f"  {'':12}{'L0':>6}{'FVU':>8}{'CE recovered':>14}   {'CE: model / coder / ablated':30}{'dead':>6}")
    for name, result in results.items():
        metrics, model = result["metrics"], result["language_model"]
        ces = f"{model['ce_orig']:.3f} / {model['ce_sae']:.3f} / {model['ce_ablated']:.3f}"
        print(
            f"  {name:12}{metrics['l0']:6.1f}{metrics['fvu']:8.3f}{model['ce_recovered']:13.1%}   {ces:30}"
            f"{metrics['dead_fraction']:6.1%}"
        )
    for row in rows:
        print(f"  {row.what} {row.ours_ms:.1f} ms, {row.against} in PyTorch {row.other_ms:.1f} ms: {row.ratio:.1f}x")
    print(f"  steered with latent {steered.edit.latent}: {steered.promoted[0].token!r} and its like became likelier")
    print("  " + ", ".join(f"{what} {each:.0f} s" for what, each in seconds.items()) + f"; all in {directory}")
    print(f"  next: sae-kernels evaluate {directory / 'topk'}    sae-kernels bench --size S    docs/training.md")
