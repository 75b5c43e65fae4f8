"""What a pruning run decided and what it reached: JSON, a table, figures.

A report is plain data. ``PruningReport.save`` and ``load`` keep it in one strict JSON file,
``table`` gives a summary for the terminal and ``figures`` draws it.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tamp_modifier.files import write_json
from tamp_modifier.tokens import MODALITY_NAMES

if TYPE_CHECKING:
    pass

FORMAT = "tamp-pruning-report"
FORMAT_VERSION = 2
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
        similarities: Mean cosine similarity per pair of modalities, keyed as by `pair_name`.
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
class Recovery:
    """A training of the weights that were kept, after the pruning.

    Attributes:
        settings: Fields of ``recovery.RecoverySettings``, as plain JSON values.
        learning_rate: Highest of the schedule.
        trained: Number of weights that were trained.
        curve: Comparisons with the dense model on held-out samples, the first before any training:
            ``seconds``, ``tokens`` and ``samples`` of training so far, and ``loss`` in nats.
        best: Smallest loss of the curve, that of the saved state.
        ended: Why the training ended.
    """

    settings: dict[str, Any]
    learning_rate: float
    trained: int
    curve: list[dict[str, float]]
    best: float
    ended: str

    @property
    def change(self) -> str:
        """What became of the loss, as the end of a sentence that begins with it."""
        before = self.curve[0]["loss"]
        if self.best < before:
            return f"fell from {before:.4g} to {self.best:.4g}"
        return f"did not fall, so the weights from before were kept; it is {before:.4g}"


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
        warnings: What the run warned of: weights that stay dense, experts without a token.
        recovery: The training that followed; ``None`` without one.
        run: What was run, in words: ``date`` (year-month-day), and of ``tamp prune`` ``model``,
            ``data`` and ``command``. Of places on a disk it names the last part alone.
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
    warnings: list[str] = field(default_factory=list)
    recovery: Recovery | None = None
    run: dict[str, str] = field(default_factory=dict)

    @property
    def is_mixed(self) -> bool:
        """Whether the Linears have patterns that differ."""
        return len({linear.pattern for linear in self.linears.values()}) > 1

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values; token types become runs of ``[modality, count]``."""
        data = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}
        data["token_types"] = [_encode_runs(sample) for sample in self.token_types]
        return data

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the report as strict JSON. The file appears whole or not at all.

        Raises:
            ReportError: A value that JSON cannot hold (NaN, infinity, an object), with its place.
        """
        data = self.to_dict()
        _check_json(data, "report")
        return write_json(path, data)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PruningReport:
        """Read a report that `save` wrote.

        Raises:
            FileNotFoundError: There is no such file.
            ReportError: The file is not JSON, not a report, of another version, or has a wrong
                value.
        """
        return read_report(Path(path))


def linear_type(name: str) -> str:
    """Return the Linear's place inside a decoder layer, the same at every depth.

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
    """Return the last number in a decoder layer's name, its depth; ``None`` if the name has no
    number.
    """
    numbers = re.findall(r"(?:^|\.)(\d+)(?=\.|$)", layer)
    return int(numbers[-1]) if numbers else None


def weighted_sparsity(linears: Iterable[LinearReport], value: str = "reached") -> float:
    """Sparsity of several Linears together; ``value`` is ``"reached"`` or ``"allocated"``."""
    pairs = [(linear.numel, getattr(linear, value)) for linear in linears]
    total = sum(numel for numel, _ in pairs)
    return sum(numel * sparsity for numel, sparsity in pairs) / total if total else 0.0


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


# -- reading ---------------------------------------------------------------------------------------


def read_report(path: Path) -> PruningReport:
    """See `PruningReport.load`."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ReportError(f"{path} is not a JSON file: {error}") from None
    except ReportError as error:
        raise ReportError(f"{path}: {error}") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ReportError(f"{path} is not a pruning report of tamp-modifier")
    version = data.get("format_version")
    if version != FORMAT_VERSION:
        raise ReportError(
            f"{path} has report version {version!r}, this tamp-modifier reads "
            f"version {FORMAT_VERSION}"
        )
    try:
        return _report_from_dict(data)
    except ReportError as error:
        raise ReportError(f"{path}: {error}") from None


def _refuse_constant(name: str) -> float:
    raise ReportError(f"it holds {name}, which is not strict JSON")


def _decode_runs(runs: Any, place: str) -> list[int]:
    result: list[int] = []
    for run in _expect(runs, list, place):
        if len(_expect(run, list, place)) != 2:
            raise ReportError(f"{place} holds {run!r}, expected [modality, count]")
        modality, count = (_expect(value, int, place) for value in run)
        if not 0 <= modality < len(MODALITY_NAMES) or count < 1:
            raise ReportError(f"{place} holds {run!r}, expected [modality, count]")
        result += [modality] * count
    return result


def _expect(value: Any, kind: type | tuple[type, ...], place: str) -> Any:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if isinstance(value, bool) or not isinstance(value, kinds):
        wanted = " or ".join(sorted("null" if k is type(None) else k.__name__ for k in kinds))
        raise ReportError(f"{place} is {value!r:.60}, expected {wanted}")
    return value


def _number(value: Any, place: str, low: float = -math.inf, high: float = math.inf) -> float:
    number = float(_expect(value, (int, float), place))
    if not low <= number <= high:
        raise ReportError(f"{place} is {number}, expected {low} to {high}")
    return number


def _named(data: Any, convert: Callable[[Any, str], Any], place: str) -> dict[str, Any]:
    return {k: convert(v, f"{place}.{k}") for k, v in _expect(data, dict, place).items()}


def _count(value: Any, place: str) -> int:
    return int(_number(_expect(value, int, place), place, low=0))


def _text(value: Any, place: str) -> str:
    return _expect(value, str, place)


def _check_keys(data: Mapping[str, Any], kind: type, place: str) -> None:
    wanted = {f.name for f in fields(kind)}
    missing, unknown = sorted(wanted - set(data)), sorted(set(data) - wanted)
    if missing or unknown:
        problem = f"lacks {', '.join(missing)}" if missing else f"has unknown {', '.join(unknown)}"
        raise ReportError(f"{place} {problem}")


def _report_from_dict(data: dict[str, Any]) -> PruningReport:
    data = {k: v for k, v in data.items() if k not in ("format", "format_version")}
    data = {"warnings": [], "recovery": None, "run": {}} | data  # written since 0.2
    _check_keys(data, PruningReport, "the report")
    seed = _expect(data["seed"], (int, type(None)), "seed")
    return PruningReport(
        requested_sparsity=_number(data["requested_sparsity"], "requested_sparsity", 0, 1),
        reached_sparsity=_number(data["reached_sparsity"], "reached_sparsity", 0, 1),
        mask_structure=_text(data["mask_structure"], "mask_structure"),
        settings=_expect(data["settings"], dict, "settings"),
        versions=_named(data["versions"], _text, "versions"),
        seed=seed,
        samples=_count(data["samples"], "samples"),
        tokens=_named(data["tokens"], _count, "tokens"),
        timings=_named(data["timings"], _number, "timings"),
        linears=_named(data["linears"], _linear_from_dict, "linears"),
        token_types=[
            _decode_runs(runs, f"token_types[{index}]")
            for index, runs in enumerate(_expect(data["token_types"], list, "token_types"))
        ],
        attention=_named(
            data["attention"], lambda row, place: _named(row, _number, place), "attention"
        ),
        warnings=[_text(line, "warnings") for line in _expect(data["warnings"], list, "warnings")],
        recovery=None if data["recovery"] is None else _recovery_from_dict(data["recovery"]),
        run=_named(data["run"], _text, "run"),
    )


def _recovery_from_dict(data: Any) -> Recovery:
    place = "recovery"
    _check_keys(_expect(data, dict, place), Recovery, place)
    curve = []
    for index, entry in enumerate(_expect(data["curve"], list, f"{place}.curve")):
        found = _named(entry, _number, f"{place}.curve[{index}]")
        if sorted(found) != ["loss", "samples", "seconds", "tokens"]:
            raise ReportError(
                f"{place}.curve[{index}] has {', '.join(sorted(found))}, expected loss, samples, "
                "seconds, tokens"
            )
        curve.append(found)
    return Recovery(
        settings=_expect(data["settings"], dict, f"{place}.settings"),
        learning_rate=_number(data["learning_rate"], f"{place}.learning_rate", low=0),
        trained=_count(data["trained"], f"{place}.trained"),
        curve=curve,
        best=_number(data["best"], f"{place}.best"),
        ended=_text(data["ended"], f"{place}.ended"),
    )


def _linear_from_dict(data: Any, place: str) -> LinearReport:
    _check_keys(_expect(data, dict, place), LinearReport, place)
    shape = [_count(value, f"{place}.shape") for value in _expect(data["shape"], list, place)]
    if len(shape) != 2:
        raise ReportError(f"{place}.shape is {shape}, expected [out_features, in_features]")
    importance = data["importance"]
    return LinearReport(
        shape=(shape[0], shape[1]),
        numel=_count(data["numel"], f"{place}.numel"),
        importance=None if importance is None else _number(importance, f"{place}.importance"),
        similarities=_named(data["similarities"], _number, f"{place}.similarities"),
        allocated=_number(data["allocated"], f"{place}.allocated", 0, 1),
        pattern=_text(data["pattern"], f"{place}.pattern"),
        reached=_number(data["reached"], f"{place}.reached", 0, 1),
        tokens_seen=_count(data["tokens_seen"], f"{place}.tokens_seen"),
        selected=[
            [_count(token, f"{place}.selected") for token in _expect(sample, list, place)]
            for sample in _expect(data["selected"], list, f"{place}.selected")
        ],
        layer=_text(data["layer"], f"{place}.layer"),
    )
