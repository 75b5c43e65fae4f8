"""``tamp inspect``: what a checkpoint holds and how it will be served."""

from __future__ import annotations

import argparse
import dataclasses
import json
import textwrap
from collections import Counter
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any

from tamp_modifier.commands.arguments import positive
from tamp_modifier.commands.output import shard_progress
from tamp_modifier.messages import size_text

if TYPE_CHECKING:
    from tamp_modifier.checkpoint.inspection import CheckpointInfo, LinearInfo


def add_parser(subparsers: Any) -> None:
    """Add the command to the parser of ``tamp``."""
    parser = subparsers.add_parser(
        "inspect",
        help="show the sparsity of a checkpoint and how vLLM will serve it",
        description="Read the checkpoint folder DIR, dense, packed or legacy, and print for each "
        "kind of Linear its zeros, the N:M pattern found, its size dense and packed, and what vLLM "
        "with the plugin does with it on this machine, and why.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder with safetensors files")
    parser.add_argument("--all", action="store_true", help="print every Linear on a row of its own")
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
    """Print the Linears, one row a kind or one row each, and the totals."""
    from tamp_modifier.checkpoint.inspection import inspect_checkpoint
    from tamp_modifier.sparse.choice import DEFAULT_SIZES, Sizes
    from tamp_modifier.sparse.machine import gpus

    sizes: Sizes | None = Sizes(
        args.max_num_seqs or DEFAULT_SIZES.decode,
        args.max_num_batched_tokens or DEFAULT_SIZES.prefill,
    )
    if gpus() and args.max_num_seqs is None and args.max_num_batched_tokens is None:
        sizes = None
    with shard_progress("reading") as progress:
        info = inspect_checkpoint(args.folder, progress, sizes)
    if args.json:
        print(json.dumps(dataclasses.asdict(info), indent=2))
        return
    for line in [*_table(info.linears, args.all), ""]:
        print(line)
    for line in summary(info):
        print(textwrap.fill(line, get_terminal_size().columns, subsequent_indent="  "))


def _table(linears: list[LinearInfo], every: bool) -> list[str]:
    """Return the lines of the table; a name that leaves no room has a line of its own."""
    patterns = any(":" in linear.pattern for linear in linears)
    layers, pattern = ([] if every else ["layers"]), (["N:M"] if patterns else [])
    head = ["Linear", *layers, "out x in", "zeros", *pattern, "dense", "packed", "in vLLM"]
    rows = [head]
    if every:
        rows += [[linear.name, *_cells([linear], patterns)] for linear in linears]
    stack = ""
    for kind in [] if every else kinds(linears):
        if kind.stack != stack:
            stack = kind.stack
            rows.append([stack or "others"])
        rows.append([f"  {kind.name}", kind.layers, *_cells(kind.linears, patterns)])
    full = [row for row in rows if len(row) > 1]
    widths = [max(len(row[column]) for row in full) for column in range(len(head))]
    widths[0] = min(
        widths[0], max(20, get_terminal_size().columns - sum(widths[1:]) - 2 * len(widths))
    )
    lines = []
    for name, *cells in rows:
        if len(name) > widths[0] or not cells:
            lines.append(name)
            name = ""
        columns = [f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=False)]
        lines += ["  ".join([f"{name:<{widths[0]}}", *columns])] if cells else []
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


def _cells(linears: list[LinearInfo], patterns: bool) -> list[str]:
    """Return what Linears of one kind have in common, from their shape on."""
    known = [linear.sparsity for linear in linears if linear.sparsity is not None]
    zeros = ""
    if known:
        zeros = share_text(min(known), max(known))
    found = {linear.pattern for linear in linears}
    pattern = found.pop() if len(found) == 1 else "mixed"
    packs = any(linear.packs for linear in linears)
    return [
        "x".join(map(str, linears[0].shape)),
        zeros,
        *([pattern if ":" in pattern or pattern == "mixed" else ""] if patterns else []),
        size_text(sum(linear.dense_bytes for linear in linears)),
        size_text(sum(_on_disk(linear) for linear in linears)) if packs else "",
        linears[0].served,
    ]


def share_text(low: float, high: float) -> str:
    """Return a range of shares in a few digits: "50.0%", "50%" or "45-55%"."""
    if high - low < 0.001:
        return f"{low:.1%}"
    return f"{low:.0%}" if f"{low:.0%}" == f"{high:.0%}" else f"{100 * low:.0f}-{high:.0%}"


def _on_disk(linear: LinearInfo) -> int:
    return linear.packed_bytes if linear.packs else linear.dense_bytes


@dataclasses.dataclass(frozen=True)
class Kind:
    """Linears of one shape and dtype at the same place of their layers, which vLLM serves alike.

    Attributes:
        stack: what their layers are in, such as "model.layers"; "" where they are in none.
        name: the last part of their names, or all behind the layer where that names two kinds.
        layers: the numbers of their layers, such as "0-2, 5".
        linears: the Linears.
    """

    stack: str
    name: str
    layers: str
    linears: list[LinearInfo]


def kinds(linears: list[LinearInfo]) -> list[Kind]:
    """Return Linears by kind, stack by stack; those in none come last."""
    places = [_place(linear.name) for linear in linears]
    called: dict[tuple[str, str], set[str]] = {}
    for stack, _, inside in places:
        called.setdefault((stack, _short(inside)), set()).add(inside)
    found: dict[tuple[Any, ...], list[int]] = {}
    for number, ((stack, _, inside), linear) in enumerate(zip(places, linears, strict=True)):
        one = stack and len(called[stack, _short(inside)]) == 1
        name = _short(inside) if one else inside
        key = stack, name, linear.shape, linear.dtype, linear.served, linear.packs
        found.setdefault(key, []).append(number)
    stacks = list(dict.fromkeys(stack for stack, _, _ in places if stack)) + [""]
    rows = []
    for (stack, name, *_), numbers in found.items():
        layers = number_ranges([places[number][1] for number in numbers])
        rows.append(Kind(stack, name, layers, [linears[number] for number in numbers]))
    return sorted(rows, key=lambda kind: stacks.index(kind.stack))


def _place(name: str) -> tuple[str, int | None, str]:
    """Return stack, layer and place inside it: ``("model.layers", 3, "mlp.up_proj")``.

    Further numbers, as of experts, are a star. A name without a layer is all place.
    """
    parts = name.split(".")
    at = next((i for i, part in enumerate(parts[:-1]) if part.isdigit() and i), None)
    if at is None:
        return "", None, name
    inside = ["*" if part.isdigit() else part for part in parts[at + 1 :]]
    return ".".join(parts[:at]), int(parts[at]), ".".join(inside)


def _short(inside: str) -> str:
    """Return the last part of a place, of experts also what they are: ``experts.*.up_proj``."""
    parts = inside.split(".")
    return ".".join(parts[-3:] if "*" in parts[-2:] else parts[-1:])


def number_ranges(numbers: list[int | None]) -> str:
    """Return whole numbers in words: "0-2, 5"; "" where there are none."""
    found: list[list[int]] = []
    for number in sorted({number for number in numbers if number is not None}):
        if found and found[-1][1] == number - 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in found)


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
        sizes = f": {size_text(size)} instead of {size_text(before)}" if packs else ""
        lines.append(f"tamp pack packs {len(packs)} of {len(info.linears)} Linears{sizes}")
    lines += [f"GPU: Triton kernels on {gpu['name']}" for gpu in info.gpus]
    kernels = info.kernels
    lines.append(f"CPU kernels: {kernels['path'] or 'none'}, {kernels['why']}")
    for served in ("packed", "dense"):
        reasons = Counter(linear.why for linear in info.linears if linear.served == served)
        lines += [f"{served}, {count}: {why}" for why, count in reasons.most_common()]
    return lines
