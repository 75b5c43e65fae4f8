"""Read rows of Hugging Face datasets: parquet and arrow files, saved folders, objects in memory.

Media stay encoded: they come as ``{"bytes", "path"}``, as the datasets keep them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tamp_modifier.data.base import DataError, Place
from tamp_modifier.data.files import RawRow

_AT_ONCE = 32
"""Rows that are turned into Python values at once; each may have large pictures."""


def read_parquet(file: Path) -> Iterator[RawRow]:
    """Yield the rows of a parquet file.

    Raises:
        DataError: it is none.
        ImportError: pyarrow is missing.
    """
    pyarrow = _pyarrow()
    from pyarrow import parquet

    try:
        batches = parquet.ParquetFile(file).iter_batches(batch_size=_AT_ONCE)
        yield from _numbered(batches, str(file), file.parent)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file}: not a parquet file: {_one(error)}") from None


def read_arrow(file: Path) -> Iterator[RawRow]:
    """Yield the rows of an arrow file, stream or not.

    Raises:
        DataError: it is none.
        ImportError: pyarrow is missing.
    """
    pyarrow = _pyarrow()
    try:
        with pyarrow.memory_map(str(file)) as source:
            try:
                reader: Any = pyarrow.ipc.open_stream(source)
            except pyarrow.ArrowInvalid:
                whole = pyarrow.ipc.open_file(source)
                reader = (whole.get_batch(i) for i in range(whole.num_record_batches))
            small = (b.slice(i, _AT_ONCE) for b in reader for i in range(0, len(b), _AT_ONCE))
            yield from _numbered(small, str(file), file.parent)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file}: not an arrow file: {_one(error)}") from None


def is_saved_dataset(folder: Path) -> bool:
    """Whether ``save_to_disk`` of Hugging Face datasets wrote a folder."""
    saved = (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    return saved or (folder / "dataset_dict.json").is_file()


def read_saved_dataset(folder: Path) -> Iterator[RawRow]:
    """Yield the rows of a folder that ``save_to_disk`` wrote.

    Raises:
        DataError: it is damaged, or has several splits.
        ImportError: datasets is missing.
    """
    split_list = folder / "dataset_dict.json"
    if split_list.is_file():
        try:
            splits = list(json.loads(split_list.read_text(encoding="utf-8"))["splits"])
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{split_list} is damaged") from None
        split = _only_split(splits, f"{folder}", "give one of its folders")
        if Path(split).name != split:
            raise DataError(f"{split_list} names a split outside of its folder: {split!r}")
        folder /= split
    datasets = _datasets()
    try:
        dataset = datasets.load_from_disk(str(folder))
    except Exception as error:  # datasets and pyarrow raise many kinds
        raise DataError(f"{folder}: the dataset cannot be loaded: {_one(error)}") from None
    yield from _of_dataset(dataset, f"{folder}: ", folder)


def is_dataset(value: Any) -> bool:
    """Whether a value is a Dataset, IterableDataset or DatasetDict of Hugging Face."""
    return type(value).__module__.split(".")[0] == "datasets"


def is_encoded_dataset(value: Any) -> bool:
    """Whether a value is a dataset of Hugging Face whose rows are inputs of a model."""
    return is_dataset(value) and "input_ids" in (getattr(value, "column_names", None) or [])


def rows_in_memory(rows: Any) -> Iterator[RawRow]:
    """Yield the rows of a list, of a Hugging Face dataset, or of one with a single split.

    Raises:
        DataError: it has several splits.
    """
    if is_dataset(rows) and isinstance(rows, Mapping):
        rows = only_split(rows)
    if is_dataset(rows):
        yield from _of_dataset(rows, "", Path())
        return
    for number, row in enumerate(rows, start=1):
        yield RawRow(Place(f"row {number}"), row)


def only_split(splits: Mapping[str, Any]) -> Any:
    """Return the dataset of a DatasetDict that has one split.

    Raises:
        DataError: it has several.
    """
    return splits[_only_split(list(splits), "the dataset", "give one of them")]


def _of_dataset(dataset: Any, prefix: str, folder: Path) -> Iterator[RawRow]:
    if not hasattr(dataset, "with_format") or not hasattr(dataset, "__len__"):
        decoded = dataset.decode(False) if hasattr(dataset, "decode") else dataset
        for number, row in enumerate(decoded, start=1):
            yield RawRow(Place(f"{prefix}row {number}", folder), row)
        return
    table = dataset.with_format("arrow")  # the stored values, without decoding any medium
    batches = (table[i : i + _AT_ONCE] for i in range(0, len(table), _AT_ONCE))
    yield from _numbered(batches, prefix.removesuffix(": "), folder)


def _numbered(batches: Iterable[Any], name: str, folder: Path) -> Iterator[RawRow]:
    number = 0
    for batch in batches:
        mixed = [field for field in batch.schema if _has_json(field.type)]
        for row in batch.to_pylist():
            number += 1
            row |= {field.name: _unmixed(row[field.name], field.type) for field in mixed}
            yield RawRow(Place(f"{name}: row {number}" if name else f"row {number}", folder), row)


def _is_json(kind: Any) -> bool:
    """Whether a column has values of several types, which datasets keeps as JSON."""
    return getattr(kind, "extension_name", "") == "arrow.json"


def _has_json(kind: Any) -> bool:
    fields = (kind.field(i).type for i in range(kind.num_fields))
    return _is_json(kind) or any(_has_json(field) for field in fields)


def _unmixed(value: Any, kind: Any) -> Any:
    """Return a value with all JSON in it parsed; a number in it may have been a text, and becomes
    one.
    """
    if value is None:
        return None
    if _is_json(kind):
        parsed = json.loads(value)
        return parsed if isinstance(parsed, str | list | dict) else value
    if isinstance(value, dict):
        return {key: _unmixed(item, kind.field(key).type) for key, item in value.items()}
    if isinstance(value, list) and hasattr(kind, "value_type"):
        return [_unmixed(item, kind.value_type) for item in value]
    return value


def _only_split(splits: list[str], name: str, advice: str) -> str:
    if len(splits) != 1:
        raise DataError(f"{name} has the splits {', '.join(map(str, splits))}; {advice}")
    return str(splits[0])


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError:
        raise ImportError(
            'parquet and arrow files need pyarrow: pip install "tamp-modifier[compress]"'
        ) from None
    return pyarrow


def _datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise ImportError(
            'saved datasets need datasets: pip install "tamp-modifier[compress]"'
        ) from None
    return datasets


def _one(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
