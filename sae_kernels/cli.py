"""The `sae-kernels` command: subcommands come from plugins, errors are one clear line."""

from __future__ import annotations

import argparse
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence

from . import __version__, registry, settings
from .errors import PluginError, SaeKernelsError
from .plugins import plugins
from .specs import resolve


def parser() -> argparse.ArgumentParser:
    """The command line, with one subparser for each registered command."""
    environment = [f"  {variable.name:22} {variable.meaning}" for variable in settings.VARIABLES.values()]
    top = argparse.ArgumentParser(
        prog="sae-kernels",
        description="Fast sparse autoencoders and transcoders: train, evaluate, measure.",
        epilog="\n".join(["sae-kernels COMMAND --help shows an example of each.", "", "environment:", *environment]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"sae-kernels {__version__}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    subparsers = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in registry.commands.names():
        _add(subparsers, name, common)
    return top


def _add(subparsers: argparse._SubParsersAction, name: str, common: argparse.ArgumentParser) -> None:
    """One subcommand. A stranger's that cannot be set up says so when it is used; the others work."""
    try:
        spec = registry.commands.get(name)
        configure = resolve(spec.configure)
    except Exception as error:  # contested, or its module raises
        subparsers.add_parser(name, parents=[common]).set_defaults(run=_broken(name, error))
        return
    sub = subparsers.add_parser(
        name,
        help=spec.summary,
        description=spec.summary,
        parents=[common],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.set_defaults(run=spec.run)
    try:
        configure(sub)
    except Exception as error:  # whatever a stranger's code can raise
        sub.set_defaults(run=_broken(name, error))


def _broken(name: str, error: Exception) -> Callable[[argparse.Namespace], None]:
    def run(args: argparse.Namespace) -> None:
        if isinstance(error, PluginError):
            raise error
        owner = registry.commands.owners(name)[0]
        raise PluginError(f"plugin {owner!r} could not set the command up: {type(error).__name__}: {error}") from error

    return run


def _warn_in_one_line(message: Warning | str, *_: object) -> str:
    return f"sae-kernels: warning: {message}\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 on success, 1 on an error of this package, 2 on wrong usage, 130 when interrupted."""
    settings.ask_for_huge_pages()
    args = parser().parse_args(argv)
    if args.command != "plugins":
        for name in plugins().failed():
            print(f"sae-kernels: warning: plugin {name!r} failed, see sae-kernels plugins", file=sys.stderr)
    before, warnings.formatwarning = warnings.formatwarning, _warn_in_one_line
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
    finally:
        warnings.formatwarning = before


if __name__ == "__main__":
    sys.exit(main())
