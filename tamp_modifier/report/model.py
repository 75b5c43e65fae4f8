"""What a pruning run decided and what it reached: JSON, a table, figures.

A report is plain data. ``PruningReport.save`` and ``load`` keep it in one strict JSON file,
``table`` gives a summary for the terminal and ``figures`` draws it.
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tamp_modifier.tokens import MODALITY_NAMES

if TYPE_CHECKING:
    from rich.table import Table

FORMAT = "tamp-pruning-report"
FORMAT_VERSION = 2
MAX_LAYER_ROWS = 16
REPORT_FILE = "tamp_report.json"
SAMPLES_FILE = "tamp_samples.json"
"""Names in the folder of a pruned model: the report, and which samples it is of."""


class ReportError(ValueError):
    """A report that cannot be written, or a file that is not a report of this version."""


def pair_name(pair: tuple[int, int]) -> str:
    """Name of a pair of modalities: ``(0, 1)`` is ``"text-image"``."""
    return "-".join(MODALITY_NAMES[index] for index in pair)


@dataclass
class LinearReport:
    """One pruned Linear.

    Attributes:
        shape: ``[out_features, in_features]``.
        numel: Number of weights.
        importance: DAS importance, the sum of the diversity terms; ``None`` if not measured.
        similarities: Mean cosine similarity per pair of modalities, keyed as by :func:`pair_name`.
        allocated: Sparsity given to this Linear, as a fraction of its weights.
        pattern: ``"0:0"`` for unstructured, ``"N:M"`` (N of every M are zero), or ``"dense"``.
        reached: Fraction of its weights that are zero after pruning.
        tokens_seen: Tokens that entered its activation statistic, over all samples.
        selected: Picked token indices (padding removed) per sample; empty if the rule
            keeps every token.
        layer: Name of the decoder layer that it belongs to.
    """

    shape: tuple[int, int]
    numel: int
    importance: float | None
    similarities: dict[str, float]
    allocated: float
    pattern: str
    reached: float
    tokens_seen: int
    selected: list[list[int]]
    layer: str

    def __post_init__(self) -> None:
        self.shape = (int(self.shape[0]), int(self.shape[1]))


@dataclass
class PruningReport:
    """One pruning run.

    Attributes:
        requested_sparsity: Global sparsity that was asked for, a fraction of the target weights.
        reached_sparsity: Global sparsity of the same weights after pruning.
        mask_structure: What was asked for: ``"0:0"`` for unstructured, ``"N:M"``, or ``"n:M"``
            where every Linear has an N of its own; the Linears tell what each of them got.
        settings: The modifier's fields, as plain JSON values.
        versions: Versions of the packages that took part.
        seed: Seed of the run, or ``None``.
        samples: Number of calibration samples.
        tokens: Calibration tokens per modality name, padding excluded.
        timings: Seconds per phase.
        linears: The pruned Linears by their full name, in order of depth.
        token_types: Modality of every token per sample, as in ``tamp_modifier.tokens``; empty if
            not kept.
        attention: Share of the last token's attention that each modality gets, mean over samples,
            by decoder layer; empty where the selection looks at no attention.
    """

    requested_sparsity: float
    reached_sparsity: float
    mask_structure: str
    settings: dict[str, Any]
    versions: dict[str, str]
    seed: int | None
    samples: int
    tokens: dict[str, int]
    timings: dict[str, float]
    linears: dict[str, LinearReport]
    token_types: list[list[int]] = field(default_factory=list)
    attention: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def is_mixed(self) -> bool:
        """Whether the Linears have patterns that differ."""
        return len({linear.pattern for linear in self.linears.values()}) > 1

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values; token types become runs of ``[modality, count]``."""
        data = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}
        data["token_types"] = [_encode_runs(sample) for sample in self.token_types]
        return data

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the report as strict JSON. The file appears whole or not at all.

        Raises:
            ReportError: A value that JSON cannot hold (NaN, infinity, an object), with its place.
        """
        data = self.to_dict()
        _check_json(data, "report")
        return write_json(path, data)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PruningReport:
        """Reads a report that :meth:`save` wrote.

        Raises:
            FileNotFoundError: There is no such file.
            ReportError: The file is not JSON, not a report, of another version, or has a wrong
                value.
        """
        from tamp_modifier.report_reading import read_report

        return read_report(Path(path))

    def table(self) -> Table:
        """Requested and reached sparsity: by depth (at most 16 rows), by Linear type, total."""
        from rich.table import Table

        title = f"Sparsity, mask structure {self.mask_structure}, {self.samples} samples"
        table = Table(title=title, title_justify="left", show_footer=False)
        table.add_column("", overflow="fold")
        mixed = self.is_mixed
        extremes = () if mixed else ("lowest", "highest")  # the patterns tell them
        for name in ("Linears", "weights", "requested", "reached", *extremes):
            table.add_column(name, justify="right", no_wrap=True)
        if mixed:
            table.add_column("patterns")
        layers = _group(self.linears, lambda name, linear: linear.layer)
        for label, members in _merge_layers(layers):
            table.add_row(label, *_summary_cells(members, mixed))
        table.add_section()
        for label, members in _group(self.linears, lambda name, _: linear_type(name)).items():
            table.add_row(label, *_summary_cells(members, mixed))
        table.add_section()
        cells = _summary_cells(list(self.linears.values()), mixed)
        cells[2] = _percent(self.requested_sparsity)
        cells[3] = _percent(self.reached_sparsity)
        table.add_row("total", *cells, style="bold")
        return table


def linear_type(name: str) -> str:
    """The Linear's place inside a decoder layer, the same at every depth.

    ``model.layers.3.self_attn.q_proj`` is ``q_proj``; experts of a mixture share one type,
    ``model.layers.3.mlp.experts.17.up_proj`` is ``experts.up_proj``.
    """
    parts = name.split(".")
    if len(parts) >= 3 and parts[-2].isdigit():
        return f"{parts[-3]}.{parts[-1]}"
    if len(parts) >= 2 and "expert" in parts[-2]:
        return f"{parts[-2]}.{parts[-1]}"
    return parts[-1]


def layer_index(layer: str) -> int | None:
    """The last number in a decoder layer's name, its depth; ``None`` if the name has no number."""
    numbers = re.findall(r"(?:^|\.)(\d+)(?=\.|$)", layer)
    return int(numbers[-1]) if numbers else None


def weighted_sparsity(linears: Iterable[LinearReport], value: str = "reached") -> float:
    """Sparsity of several Linears together; ``value`` is ``"reached"`` or ``"allocated"``."""
    pairs = [(linear.numel, getattr(linear, value)) for linear in linears]
    total = sum(numel for numel, _ in pairs)
    return sum(numel * sparsity for numel, sparsity in pairs) / total if total else 0.0


def check_writable(path: str | os.PathLike[str]) -> None:
    """Refuses a report path that cannot be written, before hours of work go into the report.

    Raises:
        ReportError: a folder, or a place where no file can be made.
    """
    path = Path(path)
    if path.is_dir():
        raise ReportError(f"report_path {str(path)!r} is a folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ReportError(
            f"report_path {str(path)!r} cannot be written: {error.strerror}"
        ) from None


def write_json(path: str | os.PathLike[str], data: Any) -> Path:
    """Writes strict JSON through a temporary file beside it, so no reader sees half a file."""
    path = Path(path)
    text = json.dumps(data, indent=1, allow_nan=False) + "\n"
    # Lists of numbers (tokens, shapes) go on one line each, or a report would have a line a token.
    text = re.sub(r"\[\n[\s\d,]+\]", lambda match: re.sub(r"\s+", " ", match[0]), text)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def figures(report: PruningReport, folder: str | os.PathLike[str]) -> list[Path]:
    """Draws the report's figures into a folder (needs matplotlib) and returns the files' paths."""
    from tamp_modifier.figures import draw_report

    return draw_report(report, Path(folder))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"


def pattern_counts(linears: Iterable[LinearReport]) -> str:
    """How many Linears have which pattern, the densest first: ``"2 dense, 5 2:4"``."""
    counts = Counter(
        linear.pattern for linear in sorted(linears, key=lambda linear: linear.allocated)
    )
    return ", ".join(f"{count} {pattern}" for pattern, count in counts.items())


def _summary_cells(linears: Sequence[LinearReport], patterns: bool) -> list[str]:
    reached = [linear.reached for linear in linears] or [0.0]
    extremes = (
        [pattern_counts(linears)] if patterns else [_percent(min(reached)), _percent(max(reached))]
    )
    return [
        str(len(linears)),
        f"{sum(linear.numel for linear in linears):,}",
        _percent(weighted_sparsity(linears, "allocated")),
        _percent(weighted_sparsity(linears)),
        *extremes,
    ]


def _group(
    linears: Mapping[str, LinearReport], key: Callable[[str, LinearReport], str]
) -> dict[str, list[LinearReport]]:
    groups: dict[str, list[LinearReport]] = {}
    for name, linear in linears.items():
        groups.setdefault(key(name, linear), []).append(linear)
    return groups


def _merge_layers(layers: dict[str, list[LinearReport]]) -> list[tuple[str, list[LinearReport]]]:
    """Decoder layers in order, neighbours merged so that at most ``MAX_LAYER_ROWS`` rows remain."""
    names = list(layers)
    step = -(-len(names) // MAX_LAYER_ROWS) or 1
    rows = []
    for start in range(0, len(names), step):
        chunk = names[start : start + step]
        first, last = (layer_index(chunk[0]), layer_index(chunk[-1]))
        if first is None or last is None:
            label = chunk[0] if len(chunk) == 1 else f"{chunk[0]} .. {chunk[-1]}"
        else:
            label = f"layer {first}" if len(chunk) == 1 else f"layers {first}-{last}"
        rows.append((label, [linear for name in chunk for linear in layers[name]]))
    return rows


def _encode_runs(sample: Sequence[int]) -> list[list[int]]:
    runs: list[list[int]] = []
    for value in sample:
        if runs and runs[-1][0] == value:
            runs[-1][1] += 1
        else:
            runs.append([int(value), 1])
    return runs


def _check_json(value: Any, place: str) -> None:
    """Names the place of the first value that strict JSON cannot hold."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ReportError(f"{place} has the key {key!r}, which is not a string")
            _check_json(item, f"{place}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_json(item, f"{place}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ReportError(f"{place} is {value}, which JSON cannot hold")
    elif value is not None and not isinstance(value, str | int | float | bool):
        raise ReportError(f"{place} is a {type(value).__name__}, which JSON cannot hold")
