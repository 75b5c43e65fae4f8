"""The file of outcomes, and the conditions under which it may be compared."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.same_results.outcome import Outcome

FORMAT = "tamp-same-results"
FORMAT_VERSION = 1
PACKAGES = ("torch", "llmcompressor", "compressed-tensors", "transformers")
"""Packages whose version decides about bits."""
PROCESSOR = ("model name", "cpu family", "model", "stepping")
"""Lines of /proc/cpuinfo; virtual machines often have the same name for different processors."""


class SameResultsError(ValueError):
    """Outcomes that cannot be compared, with the reason."""


def conditions() -> dict[str, str]:
    """Return what bits depend on besides the package: the processor, and versions of other
    packages.
    """
    return {"processor": _processor(), **{name: version(name) for name in PACKAGES}}


def _processor() -> str:
    try:
        # The first processor speaks for all.
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    pairs = {name.strip(): value.strip() for name, _, value in (s.partition(":") for s in lines)}
    found = [pairs[name] for name in PROCESSOR if name in pairs] or [platform.machine()]
    return " / ".join([*found, torch.backends.cpu.get_cpu_capability()])


def write(path: Path, recipes: Mapping[str, Outcome]) -> None:
    """Write the outcomes of recipes."""
    data = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "conditions": conditions(),
        "recipes": recipes,
    }
    path.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read(path: Path, names: Sequence[str]) -> dict[str, Outcome]:
    """Read the outcomes of the recipes that are to be compared.

    Args:
        path: what `write` wrote.
        names: of the recipes.

    Raises:
        SameResultsError: no such file, one made under other conditions, or one without a recipe.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SameResultsError(f"{path} cannot be read: {error}") from None
    kind = (data.get("format"), data.get("format_version")) if isinstance(data, dict) else None
    if kind != (FORMAT, FORMAT_VERSION):
        raise SameResultsError(f"{path} must be a {FORMAT} file of version {FORMAT_VERSION}")
    made = data["conditions"]
    other = [
        f"{name} is {value!r} here and was {made.get(name)!r}"
        for name, value in conditions().items()
        if made.get(name) != value
    ]
    if other:
        raise SameResultsError(f"{path} was made elsewhere: {'; '.join(other)}. Make it anew here")
    missing = [name for name in names if name not in data["recipes"]]
    if missing:
        raise SameResultsError(f"{path} has no recipe {', '.join(missing)}; choose with --only")
    return {name: data["recipes"][name] for name in names}
