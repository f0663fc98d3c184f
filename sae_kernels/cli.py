"""The `sae-kernels` command: subcommands come from plugins, errors are one clear line."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence

from . import __version__, registry
from .errors import PluginError, SaeKernelsError
from .specs import resolve


def parser() -> argparse.ArgumentParser:
    """The command line, with one subparser for each registered command."""
    top = argparse.ArgumentParser(
        prog="sae-kernels",
        description="Fast sparse autoencoders and transcoders: train, evaluate, measure.",
        epilog="sae-kernels COMMAND --help shows an example of each.",
    )
    top.add_argument("--version", action="version", version=f"sae-kernels {__version__}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    subparsers = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for spec in registry.commands.all():
        sub = subparsers.add_parser(
            spec.name,
            help=spec.summary,
            description=spec.summary,
            parents=[common],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=spec.run)
        try:
            resolve(spec.configure)(sub)
        except Exception as error:  # a stranger's command must not take the others down
            sub.set_defaults(run=_broken(spec.name, error))
    return top


def _broken(name: str, error: Exception) -> Callable[[argparse.Namespace], None]:
    def run(args: argparse.Namespace) -> None:
        owners = registry.commands.owners(name)
        raise PluginError(
            f"plugin {owners[0]!r} could not set the command up: {type(error).__name__}: {error}"
        ) from error

    return run


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 on success, 1 on an error of this package, 2 on wrong usage, 130 when interrupted."""
    args = parser().parse_args(argv)
    try:
        return resolve(args.run)(args) or 0
    except (SaeKernelsError, OSError) as error:
        if args.debug:
            traceback.print_exc()
        print(f"sae-kernels {args.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"sae-kernels {args.command}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
