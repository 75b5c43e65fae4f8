"""The ``tamp`` command.

Each subcommand is a module of `tamp_modifier.commands`, listed in `COMMANDS`. Exit status: 0 done,
1 the run failed, 2 wrong arguments, 130 interrupted. A failure is one line on standard error;
``TAMP_DEBUG=1`` shows the traceback as well.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence

from tamp_modifier import __version__
from tamp_modifier.commands import (
    demo,
    env,
    estimate,
    eval,
    generate,
    inspect,
    pack,
    prune,
    recover,
    report,
)

COMMANDS = (demo, prune, recover, generate, eval, estimate, report, pack, inspect, env)
"""In the order of ``tamp --help``."""


def build_parser() -> argparse.ArgumentParser:
    """Return parser with all subcommands; each sets ``run`` to the function that does its work."""
    parser = argparse.ArgumentParser(
        prog="tamp", description="Token-adaptive layerwise pruning of multimodal LLMs."
    )
    parser.add_argument("--version", action="version", version=f"tamp-modifier {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(subparsers)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and returns its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    args = build_parser().parse_args(given)
    args.command_line = shown_command(given)
    try:
        args.run(args)
    except KeyboardInterrupt as interrupt:
        # Whoever keeps something says so; a command may say what it leaves.
        left = str(interrupt) or getattr(args, "interrupted", "nothing was written")
        print(f"tamp: interrupted; {left}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output (head, less) has gone; nothing is left to say to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        if os.environ.get("TAMP_DEBUG"):
            raise
        print(f"tamp: error: {_one_line(error)}", file=sys.stderr)
        return 1
    return 0


def shown_command(arguments: Sequence[str]) -> str:
    """Return a command line that can be published: of files and folders the last part alone."""

    def shown(part: str) -> str:
        option, equals, value = part.partition("=") if part.startswith("--") else ("", "", part)
        is_place = os.path.isabs(value) or (os.sep in value and os.path.exists(value))
        return f"{option}{equals}{os.path.basename(value.rstrip(os.sep)) if is_place else value}"

    return shlex.join(["tamp", *map(shown, arguments)])


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename is not None else ""
        return f"{place}{error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
