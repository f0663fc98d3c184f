"""SAELens' SAEs of every kind, with weights that no initialisation has."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from support.peer import D

M, K, N, D_OUT = 96, 6, 40, 10
Kinds = dict[str, tuple[str, str, dict[str, Any]]]
_TRANSCODER = {"apply_b_dec_to_input": False}
KINDS: Kinds = {
    "standard": ("standard_sae", "StandardSAE", {}),
    "standard outside": ("standard_sae", "StandardSAE", {"apply_b_dec_to_input": False}),
    "standard layer_norm": ("standard_sae", "StandardSAE", {"normalize_activations": "layer_norm"}),
    "standard constant": ("standard_sae", "StandardSAE", {"normalize_activations": "constant_norm_rescale"}),
    "jumprelu": ("jumprelu_sae", "JumpReLUSAE", {}),
    "gated": ("gated_sae", "GatedSAE", {}),
    "topk": ("topk_sae", "TopKSAE", {"k": K}),
    "topk rescaled": ("topk_sae", "TopKSAE", {"k": K, "rescale_acts_by_decoder_norm": True}),
    "transcoder": ("transcoder", "Transcoder", {"d_out": D_OUT, **_TRANSCODER}),
    "skip": ("transcoder", "SkipTranscoder", {"d_out": D, **_TRANSCODER}),
    "jump transcoder": ("transcoder", "JumpReLUTranscoder", {"d_out": D_OUT, **_TRANSCODER}),
    "jump skip": ("transcoder", "JumpReLUSkipTranscoder", {"d_out": D, **_TRANSCODER}),
}
_PLAIN = {"rescale_acts_by_decoder_norm": False}
TOP_K: Kinds = {
    "train topk": ("topk_sae", "TopKTrainingSAE", {"k": K}),
    "train topk plain": ("topk_sae", "TopKTrainingSAE", {"k": K, **_PLAIN}),
    "train batchtopk": ("batchtopk_sae", "BatchTopKTrainingSAE", {"k": 4.5}),
    "train batchtopk plain": ("batchtopk_sae", "BatchTopKTrainingSAE", {"k": 5.0, **_PLAIN}),
    "train matryoshka": (
        "matryoshka_batchtopk_sae",
        "MatryoshkaBatchTopKTrainingSAE",
        {"k": 5.0, "matryoshka_widths": [10, 40, M]},
    ),
}
_STANDARD = "standard_sae", "StandardTrainingSAE"
_JUMP = "jumprelu_sae", "JumpReLUTrainingSAE"
_WIDE = {"jumprelu_bandwidth": 0.4}
PENALISED: Kinds = {
    "train standard": (*_STANDARD, {}),
    "train standard outside": (*_STANDARD, {"apply_b_dec_to_input": False}),
    "train standard layer_norm": (*_STANDARD, {"normalize_activations": "layer_norm"}),
    "train standard p 2": (*_STANDARD, {"lp_norm": 2.0}),
    "train gated": ("gated_sae", "GatedTrainingSAE", {}),
    "train gated outside": ("gated_sae", "GatedTrainingSAE", {"apply_b_dec_to_input": False}),
    "train gated layer_norm": ("gated_sae", "GatedTrainingSAE", {"normalize_activations": "layer_norm"}),
    "train jumprelu": (*_JUMP, _WIDE),
    "train jumprelu input": (*_JUMP, {**_WIDE, "jumprelu_ste_to_input": True}),
    "train jumprelu quadratic": (
        *_JUMP,
        {**_WIDE, "jumprelu_sparsity_loss_mode": "quadratic", "target_l0": 7.0, "pre_act_loss_coefficient": 0.1},
    ),
    "train jumprelu tanh": (
        *_JUMP,
        {
            **_WIDE,
            "jumprelu_sparsity_loss_mode": "tanh",
            "jumprelu_ste_to_input": True,
            "pre_act_loss_coefficient": 0.1,
        },
    ),
}
TRAINED = TOP_K | PENALISED


def made(kind: str, dtype: str = "float64", **changed: Any) -> nn.Module:
    """Of a kind, its config changed here and there."""
    module, name, keys = (KINDS | TRAINED)[kind]
    home = importlib.import_module(f"sae_lens.saes.{module}")
    torch.manual_seed(0)
    sae = getattr(home, name)(
        getattr(home, f"{name}Config")(**{"d_in": D, "d_sae": M, "dtype": dtype, **keys, **changed})
    )
    with torch.no_grad():
        for key, parameter in sae.named_parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
            if key == "threshold":
                parameter.uniform_(-0.2, 0.8)
    return sae


def step_input(x: Tensor, dead: Tensor | None = None, n_steps: int = 3) -> Any:
    """What a training pass is given."""
    saes = importlib.import_module("sae_lens.saes.sae")
    return saes.TrainStepInput(
        sae_in=x,
        coefficients={"l1": 0.7, "l0": 0.3},
        dead_neuron_mask=dead,
        n_training_steps=n_steps,
        is_logging_step=True,
    )


def own_trainer(sae: nn.Module, n: int, **keys: Any) -> Any:
    """SAELens' SAETrainer."""
    config = importlib.import_module("sae_lens.config")
    trainer = importlib.import_module("sae_lens.training.sae_trainer")
    settings = {"total_training_samples": 10 * n, "train_batch_size_samples": n, "lr": 1e-3, "lr_end": 1e-4, **keys}
    return trainer.SAETrainer(config.SAETrainerConfig(**settings), sae, data_provider=iter(()))
