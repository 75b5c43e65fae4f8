"""``tamp inspect``: what a checkpoint holds and how it will be served."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tamp_modifier.commands.arguments import positive
from tamp_modifier.commands.output import shard_progress
from tamp_modifier.messages import size_text

if TYPE_CHECKING:
    from rich.table import Table

    from tamp_modifier.checkpoint.inspection import CheckpointInfo, LinearInfo


def add_parser(subparsers: Any) -> None:
    """Add the command to the parser of ``tamp``."""
    parser = subparsers.add_parser(
        "inspect",
        help="show the sparsity of a checkpoint and how vLLM will serve it",
        description="Read the checkpoint folder DIR, dense, packed or legacy, and print for each "
        "Linear its zeros, the N:M pattern found, its size dense and packed, and what vLLM with "
        "the plugin does with it on this machine.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder with safetensors files")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    for option, what in (
        ("--max-num-seqs", "sequences at a time"),
        ("--max-num-batched-tokens", "tokens of a step"),
    ):
        parser.add_argument(
            option,
            type=positive,
            metavar="N",
            help=f"most {what} as given to vLLM (default: those of its server on a CPU)",
        )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print one row a Linear and the totals."""
    from tamp_modifier.checkpoint.inspection import inspect_checkpoint
    from tamp_modifier.sparse.choice import DEFAULT_SIZES, Sizes

    sizes = Sizes(
        args.max_num_seqs or DEFAULT_SIZES.decode,
        args.max_num_batched_tokens or DEFAULT_SIZES.prefill,
    )
    with shard_progress("reading") as progress:
        info = inspect_checkpoint(args.folder, progress, sizes)
    if args.json:
        print(json.dumps(dataclasses.asdict(info), indent=2))
        return
    from rich.console import Console

    console = Console()
    console.print(_table(info.linears))
    for line in summary(info):
        console.print(line, highlight=False, soft_wrap=True)


def _table(linears: list[LinearInfo]) -> Table:
    """Narrow enough for 80 columns; why a Linear stays dense stands below it."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("Linear", overflow="fold")
    for title in ("out x in", "zeros", "N:M", "dense", "packed", "in vLLM"):
        table.add_column(title, justify="right", no_wrap=True)
    for linear in linears:
        table.add_row(
            linear.name,
            "x".join(map(str, linear.shape)),
            "" if linear.sparsity is None else f"{linear.sparsity:.1%}",
            linear.pattern if ":" in linear.pattern else "",
            size_text(linear.dense_bytes),
            size_text(linear.packed_bytes) if linear.packs else "",
            linear.served,
        )
    return table


def summary(info: CheckpointInfo) -> list[str]:
    """Return the totals in words, and why Linears stay dense."""
    kept = [linear for linear in info.linears if linear.served == "packed"]
    dense = sum(linear.dense_bytes for linear in info.linears)
    memory = dense - sum(linear.dense_bytes - linear.packed_bytes for linear in kept)
    layout = info.layout or "no marker"
    quantization = f", quantized with {info.quantization}" if info.quantization else ""
    dtypes = ", ".join(dict.fromkeys(linear.dtype for linear in info.linears))
    lines = [
        f"on disk: {size_text(info.stored_bytes)} ({layout}{quantization}; Linears in "
        f"{dtypes}), of them {size_text(info.other_bytes)} embeddings, norms and others",
        f"vLLM with the plugin keeps {len(kept)} of {len(info.linears)} Linears packed: "
        f"{size_text(memory)} instead of {size_text(dense)}",
    ]
    if info.layout != "packed":
        packs = [linear for linear in info.linears if linear.packs]
        size = sum(linear.packed_bytes for linear in packs)
        before = sum(linear.dense_bytes for linear in packs)
        lines.append(
            f"tamp pack packs {len(packs)} of {len(info.linears)} Linears: {size_text(size)} "
            f"instead of {size_text(before)}"
        )
    for served in ("packed", "dense"):
        reasons = Counter(linear.why for linear in info.linears if linear.served == served)
        lines += [f"{served}, {count}: {why}" for why, count in reasons.most_common()]
    return lines
