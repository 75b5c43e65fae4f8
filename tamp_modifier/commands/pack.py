"""``tamp pack`` and ``tamp unpack``: whole checkpoint folders, packed and back."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tamp_modifier.commands.arguments import share
from tamp_modifier.commands.output import shard_progress
from tamp_modifier.messages import size_text

if TYPE_CHECKING:
    from tamp_modifier.checkpoint.pack import PackStats


def add_parser(subparsers: Any) -> None:
    """Add both commands to the parser of ``tamp``."""
    packing = subparsers.add_parser(
        "pack",
        help="store a pruned checkpoint with packed weights",
        description="Write the checkpoint folder DIR to the new folder OUT with its pruned Linears "
        "packed: 9 of 16 bits a weight at 50 percent, 5.8 at 70. All else is copied as it is. "
        "vLLM with the plugin serves OUT; transformers loads it after "
        "`tamp_modifier.register_with_transformers()`.",
    )
    _add_arguments(packing, "folder with config.json and safetensors files, dense or legacy sparse")
    packing.add_argument(
        "--min-sparsity",
        type=share,
        default=None,
        metavar="SHARE",
        help="least share of zeros of a weight to be packed (default: 0.2)",
    )
    packing.set_defaults(run=run_pack)
    unpacking = subparsers.add_parser(
        "unpack",
        help="turn a packed checkpoint back into a dense one",
        description="Write the packed checkpoint folder DIR to the new folder OUT with dense "
        "weights, the same bits as before `tamp pack` (but a weight of -0 is 0). Also reads the "
        "formats sparse-bitmask and sparse-24-bitmask of compressed-tensors, which nothing else "
        "loads any more.",
    )
    _add_arguments(unpacking, "folder with config.json and safetensors files")
    unpacking.set_defaults(run=run_unpack)


def _add_arguments(parser: argparse.ArgumentParser, source: str) -> None:
    parser.add_argument("source", type=Path, metavar="DIR", help=source)
    parser.add_argument("out", type=Path, metavar="OUT", help="must not exist, or be empty")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run_pack(args: argparse.Namespace) -> None:
    """Pack, and print how large the pruned Linears were and are."""
    from tamp_modifier.checkpoint.pack import pack_checkpoint
    from tamp_modifier.checkpoint.served import MIN_SPARSITY

    least = MIN_SPARSITY if args.min_sparsity is None else args.min_sparsity
    with shard_progress("packing") as progress:
        stats = pack_checkpoint(args.source, args.out, least, progress)
    _report(args, stats)


def run_unpack(args: argparse.Namespace) -> None:
    """Unpack, and print what was written."""
    from tamp_modifier.checkpoint.pack import unpack_checkpoint

    with shard_progress("unpacking") as progress:
        stats = unpack_checkpoint(args.source, args.out, progress)
    _report(args, stats)


def _report(args: argparse.Namespace, stats: PackStats) -> None:
    if args.json:
        fields = dataclasses.asdict(stats) | {"ratio": stats.ratio, "out": str(args.out)}
        print(json.dumps(fields, indent=2))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("pruned Linears", "dense", "packed", "ratio", "all tensors"):
        table.add_column(title, justify="right")
    packed = stats.packed_bytes > 0
    table.add_row(
        str(len(stats.linears)),
        size_text(stats.dense_bytes),
        size_text(stats.packed_bytes) if packed else "",
        f"{stats.ratio:.3f}" if packed else "",
        size_text(stats.total_bytes),
    )
    console = Console()
    console.print(table)
    console.print(f"wrote {args.out}", highlight=False, soft_wrap=True)
