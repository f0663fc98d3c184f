"""dictionary_learning: `trainer_i/` with `config.json` and `ae.pt`."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..architectures import SparseCoder
from ..errors import FormatError
from ..files import atomic_directory
from ._config import Keys, peek_json, read_json, write_json
from ._saving import cannot_hold, config_of, parameters_of, threshold_of
from ._weights import Weights, assembled, log_of, read_torch

NAME = "dictionary_learning"
CONFIG, WEIGHTS = "config.json", "ae.pt"
CLASSES = {
    "AutoEncoder": "relu",
    "AutoEncoderNew": "relu",
    "GatedAutoEncoder": "gated",
    "JumpReluAutoEncoder": "jumprelu",
    "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "batch_topk",
    "MatryoshkaBatchTopKSAE": "matryoshka",
}
# our name: theirs, where encoder and decoder are linear layers; a decoder's weight is (d_in, d_sae) there
LINEAR = {"W_enc": "encoder.weight", "W_dec": "decoder.weight"}
SUBTRACTS = {"AutoEncoderNew": False, "JumpReluAutoEncoder": False}  # all others do


def matches(path: Path) -> bool:
    """A folder with ae.pt, or with a config.json that names a dict_class; an ae.pt itself."""
    if path.name == WEIGHTS or (path / WEIGHTS).is_file():
        return True
    trainer = peek_json(path / CONFIG).get("trainer")
    return isinstance(trainer, dict) and "dict_class" in trainer


def load(path: Path) -> SparseCoder:
    """What the class named in config.json computes by default. Without a config.json the class is found from the
    tensors, but for AutoEncoderTopK and BatchTopKSAE, whose tensors are alike.

    BatchTopKSAE and MatryoshkaBatchTopKSAE with their threshold unset (-1) keep every positive act: θ = 0 here. The
    thresholds of AutoEncoderTopK, which nothing uses by default, and the trainer's configuration go into `metadata`.

    Raises:
        FormatError: a class without a counterpart, a pickle of anything but tensors, or damage.
    """
    file = path if path.name == WEIGHTS else path / WEIGHTS
    trainer = _trainer(file)
    weights = Weights(file, read_torch(file))
    cls = trainer.choice("dict_class", CLASSES) if "dict_class" in trainer else _guessed(weights)
    linear = cls not in ("JumpReluAutoEncoder", "MatryoshkaBatchTopKSAE")
    n, d = weights.sizes("encoder.weight", 2) if linear else reversed(weights.sizes("W_enc", 2))
    for key, size in (("dict_size", n), ("activation_dim", d)):
        if key in trainer and trainer.integer(key) != size:
            raise trainer.refuse(key, f"{file} has {size}")
    tensors: dict[str, Tensor] = {}
    if linear:
        tensors["W_enc"] = weights.take("encoder.weight", n, d)
        tensors["W_dec"] = weights.take_rows("decoder.weight", d, n)
    else:
        tensors["W_enc"], tensors["W_dec"] = weights.take_rows("W_enc", d, n), weights.take("W_dec", n, d)
    for mine, name in _vectors(cls).items():
        tensors[mine] = weights.take(name, d if mine == "b_dec" else n)
    metadata = {"trainer": trainer.values} if trainer.values else {}
    config = {"d_in": d, "d_sae": n, **_own(weights, trainer, cls, n, tensors, metadata)}
    config["subtract_b_dec"] = SUBTRACTS.get(cls, True)
    weights.done(f"a {cls} of dictionary_learning")
    coder = assembled(file, CLASSES[cls], config, tensors)
    coder.metadata = metadata
    return coder


def _trainer(file: Path) -> Keys:
    """The trainer's part of config.json; empty without that file."""
    if not file.with_name(CONFIG).is_file():
        return Keys(file.with_name(CONFIG), {})
    keys = read_json(file.with_name(CONFIG))
    return Keys(keys.file, keys.mapping("trainer"))


def _guessed(weights: Weights) -> str:
    signs = {
        "gate_bias": "GatedAutoEncoder",
        "group_sizes": "MatryoshkaBatchTopKSAE",
        "bias": "AutoEncoder",
        "decoder.bias": "AutoEncoderNew",
    }
    for name, cls in signs.items():
        if name in weights:
            return cls
    if "threshold" in weights and "W_enc" in weights:
        return "JumpReluAutoEncoder"
    raise FormatError(
        f"{weights.file}: AutoEncoderTopK or BatchTopKSAE? {weights.file.with_name(CONFIG)} with trainer.dict_class, "
        "which says so, is missing"
    )


def _vectors(cls: str) -> dict[str, str]:
    """Our biases: theirs."""
    return {
        "AutoEncoder": {"b_enc": "encoder.bias", "b_dec": "bias"},
        "AutoEncoderNew": {"b_enc": "encoder.bias", "b_dec": "decoder.bias"},
        "GatedAutoEncoder": {"b_gate": "gate_bias", "b_mag": "mag_bias", "r_mag": "r_mag", "b_dec": "decoder_bias"},
        "AutoEncoderTopK": {"b_enc": "encoder.bias", "b_dec": "b_dec"},
        "BatchTopKSAE": {"b_enc": "encoder.bias", "b_dec": "b_dec"},
    }.get(cls, {"b_enc": "b_enc", "b_dec": "b_dec"})


def _own(
    weights: Weights, trainer: Keys, cls: str, n: int, tensors: dict[str, Tensor], metadata: dict[str, Any]
) -> dict[str, Any]:
    """The keys of one class; its own tensors go into `tensors`."""
    if cls in ("AutoEncoder", "AutoEncoderNew"):
        return {"sparsity_coefficient": 0.0}
    if cls == "GatedAutoEncoder":
        return {"sparsity_coefficient": 0.0, "normalize_decoder": False}
    if cls == "JumpReluAutoEncoder":
        tensors["log_theta"] = log_of(weights.take("threshold", n))
        return {"sparsity_coefficient": 0.0, "normalize_decoder": False}
    k = weights.take_integer("k") if "k" in weights else trainer.integer("k")
    if "k" in trainer and trainer.integer("k") != k:
        raise trainer.refuse("k", f"{weights.file} has {k}")
    threshold = weights.take("threshold").float() if "threshold" in weights else torch.tensor(-1.0)
    if cls == "AutoEncoderTopK":
        metadata["threshold"] = float(threshold)
        return {"k": k}
    tensors["threshold"] = threshold.clamp_min(0)
    if cls == "BatchTopKSAE":
        return {"k": k}
    return {"k": k, "prefixes": list(itertools.accumulate(weights.take_integers("group_sizes")))}


def save(coder: SparseCoder, path: Path) -> None:
    """A folder that `load_dictionary` reads and computes the same with in eval mode.

    Raises:
        FormatError: an architecture it does not have, or another reading of x than its class has.
    """
    subtract = config_of(coder, "subtract_b_dec")
    cls = next((theirs for theirs, ours in CLASSES.items() if ours == coder.architecture), None)
    if cls == "AutoEncoder" and not subtract:
        cls = "AutoEncoderNew"
    if cls is None:
        raise cannot_hold(NAME, coder, f"it has {', '.join(dict.fromkeys(CLASSES.values()))}")
    if SUBTRACTS.get(cls, True) != subtract:
        raise cannot_hold(NAME, coder, f"subtract_b_dec = {subtract}; {cls} has it the other way")
    own = parameters_of(coder)
    own.pop("log_theta", None)
    linear = cls not in ("JumpReluAutoEncoder", "MatryoshkaBatchTopKSAE")
    names = {**(LINEAR if linear else {}), **_vectors(cls)}
    held = {names.get(name, name): tensor for name, tensor in own.items()}
    turned = "decoder.weight" if linear else "W_enc"
    held[turned] = held[turned].mT
    trainer = {**coder.metadata.get("trainer", {}), "dict_class": cls}
    trainer.update(activation_dim=coder.d_in, dict_size=coder.d_sae)
    if cls in ("JumpReluAutoEncoder", "BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
        theta = threshold_of(NAME, coder)
        held["threshold"] = theta if cls == "JumpReluAutoEncoder" else coder.get_buffer("threshold").float()
    if (k := config_of(coder, "k")) is not None:
        trainer["k"] = k
        held["k"] = torch.tensor(k, dtype=torch.int32)
    if cls == "AutoEncoderTopK":
        held["threshold"] = torch.tensor(float(coder.metadata.get("threshold", -1.0)))
    if cls == "MatryoshkaBatchTopKSAE":
        ends = coder.config.ends  # pyright: ignore[reportAttributeAccessIssue]
        held["group_sizes"] = torch.tensor([end - start for start, end in itertools.pairwise((0, *ends))])
    with atomic_directory(path) as folder:
        write_json({"trainer": trainer}, folder / CONFIG)
        torch.save({name: t.detach().cpu().contiguous().clone() for name, t in held.items()}, folder / WEIGHTS)
