"""Reads pruning reports, and names the place of whatever is wrong in one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from tamp_modifier.report import (
    FORMAT,
    FORMAT_VERSION,
    LinearReport,
    PruningReport,
    ReportError,
)
from tamp_modifier.tokens import MODALITY_NAMES


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
