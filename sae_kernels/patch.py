"""`python -m sae_kernels.patch script.py …`: run somebody's script with the libraries it uses made faster.

    python -m sae_kernels.patch train.py --lr 1e-4
    python -m sae_kernels.patch --only sae_lens,sparsify -m sparsify EleutherAI/pythia-160m

To be run, not imported: `sae_kernels.patch` is the function.
"""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """Enable the patches, then run the script or module as `python` itself would."""
    parser = argparse.ArgumentParser(
        prog="python -m sae_kernels.patch",
        description="Run a script with the libraries it uses made faster.",
        epilog="example:\n  python -m sae_kernels.patch train.py --lr 1e-4",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only", default="", help="comma-separated patches (default: all); sae-kernels plugins lists them"
    )
    parser.add_argument("-m", dest="module", action="store_true", help="what follows is a module, as in python -m")
    parser.add_argument("script", help="a script, or with -m a module")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the script's own arguments")
    args = parser.parse_args(argv)

    from sae_kernels.errors import SaeKernelsError
    from sae_kernels.patches.auto import enable
    from sae_kernels.settings import ask_for_huge_pages

    ask_for_huge_pages()
    try:
        enable([name for name in args.only.split(",") if name] or None)
    except SaeKernelsError as error:
        sys.exit(f"sae_kernels.patch: {error}")
    sys.argv = [args.script, *args.arguments]
    if args.module:
        runpy.run_module(args.script, run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = _folder(args.script)
        runpy.run_path(args.script, run_name="__main__")


def _folder(script: str) -> str:
    """Where a script finds its neighbours."""
    import os

    return os.path.dirname(os.path.abspath(script))


if __name__ == "__main__":
    main()
else:  # the import system is about to put this module where the function is
    from types import ModuleType

    from .patches.patch import patch as _patch

    class _Callable(ModuleType):
        """A module that still does what the function of its name does."""

        def __call__(self, *args, **kwargs):
            """`sae_kernels.patches.patch`."""
            return _patch(*args, **kwargs)

    sys.modules[__name__].__class__ = _Callable
