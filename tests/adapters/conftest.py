"""A tiny language model of random weights with a byte tokenizer, saved as Hugging Face files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sae_kernels.adapters import HuggingFaceModel

N_LAYERS, D_MODEL, MAX_CONTEXT = 3, 16, 64


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The tensors here are so small that a second thread only costs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tiny-llama")

    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<bos>", "<eos>", *alphabet])}
    core = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<bos>", eos_token="<eos>", model_max_length=MAX_CONTEXT
    )
    tokenizer.save_pretrained(folder)

    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=D_MODEL,
        intermediate_size=32,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=2,
        max_position_embeddings=MAX_CONTEXT,
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=0.5,  # large enough that an ablation shows in the logits
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def lm(model_folder: Path) -> HuggingFaceModel:
    return HuggingFaceModel.load(model_folder, dtype="float32")
