"""``tamp generate``: texts that a model makes up, as data for pruning and recovery."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tamp_modifier.commands.arguments import add_dtype, count, positive


def add_parser(subparsers: Any) -> None:
    """Add the command to the parser of ``tamp``."""
    parser = subparsers.add_parser(
        "generate",
        help="have a model make up texts, as data for pruning and recovery",
        description="Write texts that MODEL makes up from nothing to the new file OUT, a row each: "
        "half documents, half conversations with itself (without a chat template all are "
        "documents). `tamp recover` and `tamp prune` read OUT, alone or in a folder with other "
        "data. Run the same command again to resume a run that was killed.",
    )
    parser.add_argument("model", metavar="MODEL", help="folder or name of the dense model")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="OUT", help="a .jsonl file, must not exist"
    )
    parser.add_argument("--samples", type=positive, default=256, help="default: %(default)s")
    parser.add_argument(
        "--tokens", type=positive, default=256, help="of each text (default: %(default)s)"
    )
    parser.add_argument(
        "--temperature", type=float, default=1.0, help="of sampling (default: %(default)g)"
    )
    parser.add_argument(
        "--batch-size", type=positive, default=16, help="texts at once (default: %(default)s)"
    )
    parser.add_argument("--seed", type=count, default=0, help="default: %(default)s")
    add_dtype(parser)
    parser.add_argument(
        "--restart", action="store_true", help="start over instead of resuming a killed run"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a line")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Write the file and say so."""
    from tamp_modifier.commands.output import phases
    from tamp_modifier.quiet import library_silence

    with phases() as step, library_silence() as warnings:
        from tamp_modifier.data import Generating
        from tamp_modifier.workflows.texts import write_texts

        generating = Generating(
            args.samples, args.tokens, args.temperature, args.batch_size, args.seed
        )
        out = write_texts(args.model, args.output, generating, args.dtype, args.restart, step)
    if args.json:
        print(json.dumps({"output": str(out), "samples": args.samples, "warnings": warnings}))
        return
    print(f"wrote {args.samples} texts of {args.tokens} tokens to {out}")
    for warning in warnings:
        print(f"warning: {warning}")
