"""Coders from the Hugging Face hub: `hf:owner/name[/folder or file][@revision]`."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ..errors import FormatError

PREFIX = "hf:"
REFERENCE = re.compile(r"hf:(?://)?(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<inside>[^@]+?))?/?(?:@(?P<revision>.+))?")
CONFIGS = ("config.json", "cfg.json", "config.yaml", "activation_scaler.json")
FILES = (".safetensors", ".npz", ".pt", ".pth")
# at a repository's root only the files a coder is made of: there may be a thousand others below
ROOT = (
    *CONFIGS,
    *("weights.safetensors", "sae_weights.safetensors", "sae.safetensors", "ae.pt", "params.npz"),
    *("params.safetensors", "layer_*.safetensors", "*_layer_*.safetensors", "W_enc_*.safetensors"),
    "W_dec_*.safetensors",
)


class Reference(NamedTuple):
    """What a reference says."""

    repo: str
    inside: str | None
    revision: str | None


def parse(reference: str) -> Reference:
    """The parts of `hf:owner/name[/folder or file][@revision]`.

    Raises:
        FormatError: anything else.
    """
    found = REFERENCE.fullmatch(reference)
    if found is None:
        raise FormatError(f"{reference!r}: expected hf:owner/name[/folder or file][@revision]")
    if found["inside"] and ".." in PurePosixPath(found["inside"]).parts:
        raise FormatError(f"{reference!r}: a folder of the repository expected, found {found['inside']!r}")
    return Reference(found["repo"], found["inside"], found["revision"])


def fetch(reference: str, *, revision: str | None = None, local_files_only: bool = False) -> Path:
    """The file or folder, in huggingface_hub's cache, downloaded if it is not there; offline (HF_HUB_OFFLINE=1, or
    `local_files_only`) what is there. Of a folder everything below it is fetched; of a root, the files of one coder.

    Raises:
        FormatError: not a reference, nothing there, no access, or huggingface_hub is not installed.
    """
    repo, inside, written = parse(reference)
    if written is not None and revision is not None and written != revision:
        raise FormatError(f"{reference!r} names a revision, and revision = {revision!r} another")
    revision = written if written is not None else revision
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise FormatError(f"{reference!r}: huggingface_hub is needed: pip install sae-kernels[hub]") from error
    patterns = list(ROOT)
    if inside is not None:
        beside = PurePosixPath(inside).parent
        beside_it = [str(beside / name) for name in CONFIGS] if PurePosixPath(inside).suffix in FILES else []
        patterns = [inside, f"{inside}/*", *beside_it]
    try:
        folder = snapshot_download(repo, revision=revision, allow_patterns=patterns, local_files_only=local_files_only)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FormatError(f"{reference!r} (revision {revision or 'main'}): {first}") from error
    at = Path(folder) if inside is None else Path(folder) / inside
    if not at.exists():
        where = f"revision {revision or 'main'}, at {folder}"
        raise FormatError(f"{reference!r}: the repository has no {inside!r} ({where})")
    return at
