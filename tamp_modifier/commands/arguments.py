"""Command line arguments, and types of them, that several commands share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tamp_modifier.data import Answering


def positive(text: str) -> int:
    """Return a whole number from 1 on.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    value = int(text) if text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return value


def count(text: str) -> int:
    """Return a whole number from 0 on.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)


def share(text: str) -> float:
    """Return a number above 0 and up to 1.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and up to 1")
    return value


def add_dtype(parser: argparse.ArgumentParser) -> None:
    """Add ``--dtype``, the type that a model is loaded with."""
    parser.add_argument(
        "--dtype",
        choices=("auto", "bfloat16", "float16", "float32"),
        default="auto",
        help="type of the weights (default: as they are stored, computed in fp32 where the "
        "processor emulates that)",
    )


def add_pipeline(parser: argparse._ActionsContainer) -> None:
    """Add ``--pipeline``, how samples pass through the model."""
    parser.add_argument(
        "--pipeline",
        choices=("auto", "sequential", "basic"),
        default="auto",
        help="sequential: layer by layer, each sees what pruning the layers before it did; basic: "
        "through the whole model; auto (default): basic where the model cannot be traced",
    )


def add_skip_bad(parser: argparse._ActionsContainer) -> None:
    """Add ``--skip-bad``, how many rows of the data may be left out."""
    parser.add_argument(
        "--skip-bad",
        type=count,
        default=0,
        metavar="N",
        help="leave out up to N rows that cannot be used, and list them (default: none)",
    )


def add_answers(parser: argparse._ActionsContainer) -> None:
    """Add ``--answers`` and what belongs to it; `answering` reads them."""
    parser.add_argument(
        "--answers",
        choices=("data", "own"),
        default="data",
        help="data (default): the answers in DATA; own: the dense model answers the questions "
        "itself, once, and its answers are kept for later runs",
    )
    parser.add_argument(
        "--answer-tokens",
        type=positive,
        metavar="N",
        help="most tokens of an answer of its own (default: 256)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help="of the model's own answers (default: 0, always the most likely token)",
    )


def answering(args: argparse.Namespace) -> Answering | None:
    """Return how the model answers itself; None where the answers of the data are taken.

    Raises:
        ValueError: an option that only goes with ``--answers own``, or a value of one.
    """
    given = {"tokens": args.answer_tokens, "temperature": args.temperature}
    given = {name: value for name, value in given.items() if value is not None}
    if args.answers == "data":
        if given:
            option = "--answer-tokens" if "tokens" in given else "--temperature"
            raise ValueError(f"{option} goes with --answers own")
        return None
    from tamp_modifier.data import Answering

    return Answering(**given, seed=args.seed)
