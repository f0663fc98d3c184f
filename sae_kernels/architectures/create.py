"""`create`: an architecture by name."""

from __future__ import annotations

from typing import Any

import torch

from .. import registry
from ..errors import PluginError
from ..specs import resolve
from ._base import CoderConfig, SparseCoder


def coder_class(name: str) -> type[SparseCoder]:
    """The class registered under a name.

    Raises:
        UnknownNameError: names the nearest. PluginError: what is registered is no SparseCoder.
    """
    cls = resolve(registry.architectures.get(name).cls)
    if not (isinstance(cls, type) and issubclass(cls, SparseCoder)):
        raise PluginError(f"architecture {name!r}: {cls!r} is not a subclass of SparseCoder")
    if cls.architecture != name:  # saved files carry the attribute: with another name they would load as something else
        raise PluginError(
            f"architecture {name!r}: {cls.__name__}.architecture is {cls.architecture!r}, expected the registered name"
        )
    return cls


def coder_config(name: str, **fields: Any) -> CoderConfig:
    """The checked configuration of an architecture, without building it.

    Raises:
        ConfigError: an unknown, missing or senseless key.
    """
    return coder_class(name).Config.build(**fields)


def create(
    architecture: str,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    seed: int | None = None,
    **config: Any,
) -> SparseCoder:
    """A new coder: `create("topk", d_in=768, d_sae=24_576, k=32)`.

    `config` are the fields of the architecture's `Config`. With `seed` the initial weights depend on it alone, and
    the global random state is left as it was.

    Raises:
        UnknownNameError: no such architecture; names the nearest. ConfigError: an unknown, missing or senseless key.
    """
    cls = coder_class(architecture)
    built = cls.Config.build(**config)
    if seed is None:
        coder = cls(built)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            coder = cls(built)
    return coder.to(device=device, dtype=dtype)
