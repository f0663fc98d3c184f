"""Configurations of the top-k family: what is refused, and what prefixes become."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import sae_kernels as sk
from sae_kernels.architectures import coder_config
from sae_kernels.architectures.matryoshka import MatryoshkaConfig
from sae_kernels.errors import ConfigError
from sae_kernels.train import Config

GOOD = {"d_in": 8, "d_sae": 20, "k": 3}
REFUSED = {
    "k beyond": ("batch_topk", {"k": 21}, "k = 21, expected at most d_sae = 20"),
    "multi text": ("topk", {"multi_topk": 1}, "multi_topk = 1, expected true or false"),
    "multi of a batch": ("batch_topk", {"multi_topk": True}, "unknown key of BatchTopKConfig 'multi_topk'"),
    "decay 1": ("batch_topk", {"threshold_decay": 1}, "threshold_decay = 1, expected 0 <= threshold_decay < 1"),
    "decay negative": ("batch_topk", {"threshold_decay": -0.1}, "threshold_decay = -0.1, expected a number >= 0"),
    "decay text": ("matryoshka", {"threshold_decay": "slow"}, "threshold_decay = 'slow', expected a number >= 0"),
    "anneal beyond": (
        "topk",
        {"k_anneal_from": 21, "k_anneal_steps": 2},
        "k_anneal_from = 21, expected at most d_sae = 20",
    ),
    "anneal from 0": ("topk", {"k_anneal_from": 0, "k_anneal_steps": 2}, "k_anneal_from = 0, expected a positive"),
    "steps negative": ("topk", {"k_anneal_steps": -1}, "k_anneal_steps = -1, expected an integer >= 0"),
    "steps alone": (
        "transcoder",
        {"k_anneal_steps": 5},
        "k_anneal_from = None and k_anneal_steps = 5, expected both (k_anneal_steps >= 1) or neither",
    ),
    "from alone": ("batch_topk", {"k_anneal_from": 9}, "k_anneal_from = 9 and k_anneal_steps = 0, expected both"),
    "prefix text": ("matryoshka", {"prefixes": "all"}, "prefixes = 'all', expected a list of integers that rise"),
    "no prefixes": ("matryoshka", {"prefixes": []}, "prefixes = [], expected the last to be d_sae = 20"),
    "falling": (
        "matryoshka",
        {"prefixes": (4, 2, 20)},
        "[4, 2, 20], expected strictly rising, found 2 after 4",
    ),
    "twice": ("matryoshka", {"prefixes": (4, 4, 20)}, "expected strictly rising, found 4 after 4"),
    "short": ("matryoshka", {"prefixes": (4, 8)}, "prefixes = [4, 8], expected the last to be d_sae = 20"),
    "beyond": ("matryoshka", {"prefixes": (4, 20, 21)}, "expected the last to be d_sae = 20"),
    "prefix 0": ("matryoshka", {"prefixes": (0, 20)}, "prefixes = [0, 20], expected positive integers, found 0"),
    "fraction": ("matryoshka", {"prefixes": (0.5, 20)}, "expected positive integers, found 0.5"),
    "misspelt": (
        "matryoshka",
        {"prefix": (4, 20)},
        "unknown key of MatryoshkaConfig 'prefix': did you mean",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    kind, change, words = REFUSED[name]
    with pytest.raises(ConfigError, match=re.escape(words)):
        sk.create(kind, **{**GOOD, **change})


@pytest.mark.parametrize(
    ("d_sae", "ends"), [(65536, (2048, 6144, 14336, 30720, 65536)), (40, (1, 3, 8, 18, 40)), (2, (1, 2)), (1, (1,))]
)
def test_prefixes_by_default_are_the_papers(d_sae: int, ends: tuple[int, ...]) -> None:
    config = coder_config("matryoshka", d_in=8, d_sae=d_sae, k=1)
    assert isinstance(config, MatryoshkaConfig)
    assert config.ends == ends
    assert coder_config("matryoshka", d_in=8, d_sae=d_sae, k=1, prefixes=ends).to_dict()["prefixes"] == ends


def test_lists_from_files_are_taken(tmp_path: Path) -> None:
    made = sk.create("matryoshka", **GOOD, prefixes=[4, 20])
    sk.save(made, tmp_path / "coder")
    assert json.loads((tmp_path / "coder" / "config.json").read_text())["config"]["prefixes"] == [4, 20]
    assert sk.load(tmp_path / "coder").config == made.config


def test_bad_prefixes_fail_before_anything_is_opened(tmp_path: Path) -> None:
    tables = {
        "activations": {"adapter": "tensors", "path": str(tmp_path / "nowhere")},
        "coder": {"architecture": "matryoshka", "d_sae": 20, "k": 3, "prefixes": [8, 4, 20]},
        "training": {"steps": 1},
        "output": {"dir": str(tmp_path / "run")},
    }
    with pytest.raises(ConfigError, match=re.escape("[coder] prefixes = [8, 4, 20], expected strictly rising")):
        Config.from_dict(tables)
    tables["coder"]["prefixes"] = ["4", 20]
    with pytest.raises(ConfigError, match=r"\[coder\] prefixes is .*, expected a list of integers"):
        Config.from_dict(tables)
