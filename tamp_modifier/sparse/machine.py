"""Which kernels would run on this machine, and why: what `tamp env` and `tamp inspect` tell."""

from __future__ import annotations

import json
import os
from typing import Any

import torch

from tamp_modifier.sparse import choice, gpu_table, native


def kernels() -> dict[str, Any]:
    """Return the kernel path on the CPU, why it is that one, and the measurements that apply."""
    try:
        paths, problem = native.paths(), ""
    except (ImportError, OSError) as error:
        paths, problem = (), " ".join(str(error).split())
    built = len(paths) > 1
    forced = os.environ.get(native.PATH_VARIABLE)
    path = forced if forced in paths else None if forced or not paths else paths[0]
    if problem:
        why = f"the native library cannot be loaded: {problem}"
    elif forced:
        known = "" if path else f", this machine supports {', '.join(paths)}"
        why = f"{native.PATH_VARIABLE}={forced}{known}"
    elif built:
        why = f"the best of {', '.join(paths)}"
    else:
        why = "the native library was not built (no C compiler at install time), slower than dense"
    table = json.loads(choice.TABLE_FILE.read_text(encoding="utf-8"))["measured"]
    measured = [
        {name: entry[name] for name in ("kind", "cpu", "date")}
        for entry in table
        if entry["path"] == path
    ]
    return {"path": path, "why": why, "native": built, "measured": measured}


def gpus() -> list[dict[str, Any]]:
    """Return name, memory and compute capability of every GPU that torch sees."""
    if not torch.cuda.is_available():
        return []
    cards = json.loads(gpu_table.PATH.read_text(encoding="utf-8"))["cards"]
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        entry = cards.get(properties.name, cards[gpu_table.DEFAULT])
        found.append(
            {
                "name": properties.name,
                "memory": properties.total_memory,
                "capability": f"{properties.major}.{properties.minor}",
                "measured": entry["measured"] is not None,
            }
        )
    return found
