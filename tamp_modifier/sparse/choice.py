"""Sparse or dense: which kernel is faster for a weight, from what was measured on such a processor.

``choice.json`` holds, for each path of `native` and each kind of number, the time of the dense
kernel over that of the sparse one by sparsity and rows of x. ``python -m benchmarks.choice`` makes
it from the results of the kernel benchmarks. The environment variable ``TAMP_SERVE`` forces either.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tamp_modifier.sparse import native

SERVE_VARIABLE = "TAMP_SERVE"
MODES = ("auto", "sparse", "dense")
TABLE_FILE = Path(__file__).with_name("choice.json")

FEW_ROWS = 64
LEAST_FEW, LEAST_MANY = 0.95, 0.9
"""Least time of the dense kernel over that of the sparse one, up to `FEW_ROWS` rows and above.

Many rows are prefill, for which a product with a packed weight may take a tenth longer.
"""

SPARSE_KERNEL = "sparse kernel"
"""Why a weight that is sparse enough stays sparse, if nothing speaks against it."""

EXPANDED = {"float8_e4m3fn": "FP8 has no sparse kernel, and expanding it in each call is slower"}
"""Kinds without a kernel: the weight is expanded, then multiplied by the dense one."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Numbers of rows of x that a Linear will see.

    Attributes:
        decode: most sequences at a time, one row each; any number from 1 to it occurs.
        prefill: tokens of a chunk of a prompt.
    """

    decode: int
    prefill: int


DEFAULT_SIZES = Sizes(decode=128, prefill=2048)
"""Of vLLM's server on a CPU."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """How a weight is multiplied.

    Attributes:
        sparse: with a sparse kernel.
        why: for people.
    """

    sparse: bool
    why: str


def setting(name: str, allowed: Sequence[str]) -> str | None:
    """Return the value of an environment variable; None if it is not set or empty.

    Raises:
        ValueError: it is none of those allowed.
    """
    value = os.environ.get(name) or None
    if value is not None and value not in allowed:
        raise ValueError(f"{name} is {value!r}, allowed are {', '.join(allowed)}")
    return value


def mode() -> str:
    """Return how weights are to be served, one of `MODES`.

    Raises:
        ValueError: the environment variable ``TAMP_SERVE`` is none of them.
    """
    return setting(SERVE_VARIABLE, MODES) or "auto"


def choose(kind: str, sparsity: float, sizes: Sizes | None, path: str | None = None) -> Choice:
    """Choose the kernel of a weight.

    A sparse kernel that is slower than the dense one at a number of rows that the Linear will see,
    by more than `LEAST_FEW` and `LEAST_MANY` allow, is not chosen.

    Args:
        kind: the weight's dtype, such as "bfloat16"; "int4", or "int4-int8" with int8 inputs.
        sparsity: its share of zeros.
        sizes: numbers of rows that it will be multiplied with; None on a GPU, for which nothing is
            measured.
        path: one of `native.paths`; the one in use if None.

    Raises:
        ValueError: the environment variable ``TAMP_SERVE`` is wrong.
    """
    forced = mode()
    if forced != "auto":
        return Choice(forced == "sparse", f"{SERVE_VARIABLE}={forced}")
    if sizes is None:
        return Choice(True, SPARSE_KERNEL)
    if kind in EXPANDED:
        return Choice(False, f"{EXPANDED[kind]} ({SERVE_VARIABLE}=sparse saves the memory)")
    path = path or native.backend()
    if path == native.TORCH:
        why = f"no native library; {SERVE_VARIABLE}=sparse saves the memory"
        return Choice(False, why)
    ratios = table().get((path, kind))
    if ratios is None:
        return Choice(True, f"{SPARSE_KERNEL}; {kind} with {path} is unmeasured")
    # Less sparse weights than measured ones are judged like the least sparse of those.
    bucket = max((s for s in ratios if s <= sparsity + 1e-3), default=min(ratios))
    for rows in rows_seen(ratios[bucket], sizes):
        ratio = ratios[bucket][rows]
        if ratio < (LEAST_FEW if rows <= FEW_ROWS else LEAST_MANY):
            measured = f"{ratio:.2f}x the speed of the dense kernel at {rows} rows"
            return Choice(False, f"{path}: {measured}, {bucket:.0%} zeros")
    return Choice(True, SPARSE_KERNEL)


def rows_seen(measured: Iterable[int], sizes: Sizes) -> list[int]:
    """Return the measured numbers of rows that stand for those of `sizes`."""
    measured = sorted(measured)
    chunk = min(measured, key=lambda rows: (abs(rows - sizes.prefill), rows))
    return sorted({rows for rows in measured if rows <= sizes.decode} | {chunk})


@functools.cache
def table() -> dict[tuple[str, str], dict[float, dict[int, float]]]:
    """Return the measured ratios: by path and kind, then sparsity, then rows of x."""
    content: dict[str, Any] = json.loads(TABLE_FILE.read_text(encoding="utf-8"))
    return {
        (entry["path"], entry["kind"]): {
            float(sparsity): {int(rows): ratio for rows, ratio in by_rows.items()}
            for sparsity, by_rows in entry["ratios"].items()
        }
        for entry in content["measured"]
    }
