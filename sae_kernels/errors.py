"""Every error a user can meet, and the words they share.

Each says what was found and what was expected. Each also derives from the built-in exception a caller
would naturally catch, so `except ValueError` keeps working in other people's code.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from torch import Tensor


class SaeKernelsError(Exception):
    """Base of all errors raised on purpose by this package."""


class ShapeError(SaeKernelsError, ValueError):
    """A tensor has the wrong rank or size."""


class DtypeError(SaeKernelsError, TypeError):
    """A tensor has a dtype the operation does not take, or two tensors disagree."""


class DeviceError(SaeKernelsError, ValueError):
    """Tensors live on different devices."""


class ArgumentError(SaeKernelsError, ValueError):
    """A plain argument (k, a name, a path) has a value that makes no sense."""


class IndexRangeError(SaeKernelsError, IndexError):
    """A latent index points outside the dictionary, or row offsets are not a valid CSR."""


class BackendError(SaeKernelsError, RuntimeError):
    """The backend that was asked for declined, or none can run."""


class PluginError(SaeKernelsError, RuntimeError):
    """A plugin is malformed, or two of them claim one name."""


class UnknownNameError(SaeKernelsError, LookupError):
    """No architecture, format, adapter, … of that name is registered."""


class ConfigError(SaeKernelsError, ValueError):
    """A configuration has an unknown key or a value that cannot be meant."""


class CheckpointError(SaeKernelsError, RuntimeError):
    """A checkpoint could not be written or read."""


class FormatError(SaeKernelsError, ValueError):
    """A weight file is truncated, foreign, or holds tensors of other shapes than its configuration says."""


class AdapterError(SaeKernelsError, ValueError):
    """A model or hook point cannot deliver the activations asked for."""


class TrainingError(SaeKernelsError, RuntimeError):
    """Training cannot go on (a loss that is not finite, for instance)."""


def describe(tensor: Tensor | None) -> str:
    """`(512, 64) float32 cpu`: how error messages and `explain` show a tensor."""
    if tensor is None:
        return "None"
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')} {tensor.device.type}"


def nearest(name: str, choices: Iterable[str], n: int = 3) -> list[str]:
    """The names most like `name`, best first."""
    return difflib.get_close_matches(name, list(choices), n=n, cutoff=0.5)


def unknown(
    kind: str, name: str, choices: Iterable[str], error: type[SaeKernelsError] = UnknownNameError
) -> SaeKernelsError:
    """The error for a name nobody registered: names the nearest, else lists all."""
    known = sorted(choices)
    close = nearest(name, known)
    hint = f"did you mean {', '.join(map(repr, close))}?" if close else f"known: {', '.join(known) or 'none'}"
    return error(f"unknown {kind} {name!r}: {hint}")
