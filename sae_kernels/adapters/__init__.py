"""Where activations come from: models read at hook points, and tensors on disk."""

from .base import ActivationBatch, ActivationSource, LanguageModel, LanguageSource, ReadsAhead
from .hook_points import HookPoint, capture, intervene
from .huggingface import HuggingFaceModel
from .tensors import TensorActivations, write_shard
from .text_activations import CrossModelActivations, TextActivations, pack
from .texts import read_texts
from .torch_module import ModuleActivations

__all__ = [
    "ActivationBatch",
    "ActivationSource",
    "CrossModelActivations",
    "HookPoint",
    "HuggingFaceModel",
    "LanguageModel",
    "LanguageSource",
    "ModuleActivations",
    "ReadsAhead",
    "TensorActivations",
    "TextActivations",
    "capture",
    "intervene",
    "pack",
    "read_texts",
    "write_shard",
]
