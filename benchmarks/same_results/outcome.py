"""What comes out of one run, and how two outcomes differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch

Outcome = dict[str, Any]
"""JSON values: "linears", name -> what is compared of it, and "run", what else is compared."""

OF_THE_RUN = (
    "requested_sparsity",
    "reached_sparsity",
    "mask_structure",
    "samples",
    "tokens",
    "attention",
)
"""What the report says about the run and does not depend on names, dates, paths or versions."""


def outcome_of(model: torch.nn.Module, report: Mapping[str, Any]) -> Outcome:
    """Return what is compared of a pruned model.

    Args:
        model: the model.
        report: its report, as JSON values.

    Returns:
        Of every Linear SHA-256 digests of the zeros of its weight ("mask"), of all its tensors
        ("tensors") and of the tokens selected for it, and the rest of what the report says about
        it. Of the run what the report says about it, and a digest of all other tensors of the
        model: norms that SmoothQuant scales, and what has to stay as it is.
    """
    tensors: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in model.state_dict().items():
        module, _, own_name = name.rpartition(".")
        tensors.setdefault(module, {})[own_name] = tensor
    linears = {}
    for name, entry in report["linears"].items():
        own = tensors.pop(name)
        linears[name] = {
            "mask": digest({"mask": own["weight"] == 0}),
            "tensors": digest(own),
            **entry,
            "selected": _digest_json(entry["selected"]),
        }
    rest = {f"{module}.{name}": t for module, own in tensors.items() for name, t in own.items()}
    run = {name: report[name] for name in OF_THE_RUN}
    run["token_types"] = _digest_json(report["token_types"])
    run["rest of the model"] = digest(rest)
    return {"linears": linears, "run": run}


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of the names, types, shapes and bytes of tensors, in the order of their names."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().contiguous()
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _digest_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def differences(before: Outcome, after: Outcome) -> list[str]:
    """Every Linear that differs and what of it does, and then what of the run differs."""
    old, new = before["linears"], after["linears"]
    found = []
    for name in old | new:
        if name not in old or name not in new:
            found.append(f"{name}: pruned only {'before' if name in old else 'after'}")
        elif changed := _changed(old[name], new[name]):
            found.append(f"{name}: {', '.join(changed)}")
    changed = _changed(before["run"], after["run"])
    return found + ([f"run: {', '.join(changed)}"] if changed else [])


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    missing = object()
    return [name for name in {**old, **new} if old.get(name, missing) != new.get(name, missing)]
