"""Runs when Python starts with SAE_KERNELS_PATCH set (sae_kernels_startup.pth): waits until the program has imported
torch, and enables the patches at the next import after that. Torch is never imported for it: a program may set
environment variables first. Nothing here can stop a program.

SAE_KERNELS_PATCH: comma-separated names of patches (sae_lens, sparsify, …), or `all`.
"""

import importlib.abc
import os
import sys
import warnings

names = [name.strip() for name in os.environ.get("SAE_KERNELS_PATCH", "").split(",") if name.strip()]


class _Waiting(importlib.abc.MetaPathFinder):
    """Finds nothing; watches for an import that comes when torch is complete."""

    def find_spec(self, fullname, path, target=None):
        """None, always."""
        torch = sys.modules.get("torch")
        if torch is None or getattr(torch.__spec__, "_initializing", False) or fullname.partition(".")[0] == "torch":
            return None
        sys.meta_path.remove(self)
        try:
            from sae_kernels.patches.auto import enable

            enable(None if names == ["all"] else names)
        except Exception as error:
            warnings.warn(f"SAE_KERNELS_PATCH={','.join(names)} has no effect: {error}", RuntimeWarning, stacklevel=2)
        return None


if names:
    sys.meta_path.insert(0, _Waiting())
