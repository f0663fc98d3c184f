"""A tiny language model of random weights with a byte tokenizer, in memory."""

from __future__ import annotations

import functools

import pytest
import torch

from sae_kernels.adapters import HuggingFaceModel, TextActivations, pack

D_MODEL, MAX_CONTEXT = 16, 64
LAYER, MLP = "model.layers.0", "model.layers.1.mlp"
TEXTS = [("one", "def f(x):\n    return x + 1\n" * 12), ("two", "The licence is hereby granted. " * 15)]


@functools.cache
def tiny_lm() -> HuggingFaceModel:
    """A Llama of three layers; token 0 is bos, 1 eos, the rest are bytes."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<bos>", "<eos>", *alphabet])}
    core = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<bos>", eos_token="<eos>", model_max_length=MAX_CONTEXT
    )
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=D_MODEL,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=MAX_CONTEXT,
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=0.5,  # large enough that an ablation shows in the logits
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return HuggingFaceModel(transformers.LlamaForCausalLM(config), tokenizer)


def tiny_source(hook_in: str = LAYER, hook_out: str | None = None, context_length: int = 16) -> TextActivations:
    """The model reading `TEXTS`; an eos stands inside one of the sequences."""
    model = tiny_lm()
    return TextActivations(model, pack(model, TEXTS, context_length), hook_in, hook_out, block_sequences=8)
