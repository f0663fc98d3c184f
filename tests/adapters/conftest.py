"""A tiny language model of random weights with a byte tokenizer, saved as Hugging Face files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.tiny_lm import tiny_lm

from sae_kernels.adapters import HuggingFaceModel


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The tensors here are so small that a second thread only costs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-llama")
    model = tiny_lm()
    model.tokenizer.save_pretrained(folder)
    model.module.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def lm(model_folder: Path) -> HuggingFaceModel:
    return HuggingFaceModel.load(model_folder, dtype="float32")
