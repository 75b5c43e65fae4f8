"""Keep what a pruning run has finished on disk, so that a run that was killed can go on.

The folder holds

- ``run.json``: what the run is of: a digest of the model, one of the calibration batches, the
  modifier's fields, and the versions of the packages. A run that differs is refused.
- ``dense_pass.json``: what the dense pass measured, once it is complete.
- ``00000.safetensors`` and so on: the Linears of one decoder layer each, pruned, with what the
  report tells of them. Where pruning only sets weights to zero, one bit a weight is enough.

Every file appears whole or not at all and carries a digest of what is in it: one that was changed,
by whomever, is refused. A run that goes on passes its samples through the finished
layers again, as their outputs are the inputs of the next, but collects nothing there and prunes
nothing anew; so it ends with the same bits as one that was never killed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from compressed_tensors.utils import align_module_device
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from tamp_modifier.calibration.activations import Activations
from tamp_modifier.calibration.collect import SelectionCollector
from tamp_modifier.calibration.measurement import Measurement
from tamp_modifier.calibration.observer import RegisterHook
from tamp_modifier.calibration.targets import Target
from tamp_modifier.diversity import Pair
from tamp_modifier.files import only_writer, whole_file, write_json
from tamp_modifier.pruning.pruner import Pruner

VALUES = 4096
"""Values of every parameter that enter the digest of a model, evenly spread."""


RUN, DENSE_PASS = "run.json", "dense_pass.json"
ANEW = "Start over with --restart, or remove that folder"


class ResumeError(ValueError):
    """Finished layers that belong to another run."""


def forget(folder: Path) -> None:
    """Remove what an earlier run has finished, if that is what the folder holds.

    Raises:
        ResumeError: the folder holds something else.
    """
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        raise ResumeError(f"{folder} is not a folder of a pruning run, so it is not removed")
    if any(folder.iterdir()) and not (folder / RUN).is_file():
        raise ResumeError(f"{_foreign(folder)}; it is not removed")
    shutil.rmtree(folder)


def forget_useless(folder: Path) -> None:
    """Remove the folder of a run that was stopped before there was anything to go on from."""
    if (folder / RUN).is_file() and not has_progress(folder):
        forget(folder)


def has_progress(folder: Path) -> bool:
    """Whether a folder holds anything that a run could go on from."""
    return (folder / DENSE_PASS).exists() or any(folder.glob("*.safetensors"))


def _foreign(folder: Path) -> str:
    return f"{folder} has files in it, but none of a run of tamp-modifier"


class Resume:
    """The finished part of one pruning run.

    Args:
        folder: where it is kept; made if need be.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = Path(folder)
        self._finished: dict[str, Path] = {}
        self._held = ExitStack()
        self._passed: set[str] = set()

    @property
    def finished(self) -> set[str]:
        """Names of the Linears that an earlier run has pruned."""
        return set(self._finished)

    def open(self, fingerprint: Mapping[str, Any]) -> None:
        """Find what an earlier run of the same kind has finished.

        Raises:
            ResumeError: the folder belongs to another run, tells in what they differ; or a file in
                it is damaged, names it.
            OSError: another run keeps its layers there.
        """
        # As JSON gives it back, so that tuples and lists compare.
        now = json.loads(json.dumps(fingerprint))
        self._folder.mkdir(parents=True, exist_ok=True)
        self._held.enter_context(only_writer(self._folder))
        path = self._folder / RUN
        if not path.exists():
            if any(self._folder.iterdir()):
                raise ResumeError(f"{_foreign(self._folder)}; move them, or give another folder")
            _write(path, now)
            return
        before = _read(path)
        different = _differences(before, now)
        if different and not has_progress(self._folder):  # stopped before there was any
            _write(path, now)
            return
        if different:
            raise ResumeError(
                f"{self._folder} is of another run: {'; '.join(different)}. {ANEW}, or give the "
                "earlier settings to resume"
            )
        for file in sorted(self._folder.glob("*.safetensors")):
            self._finished |= dict.fromkeys(_check_layer(file), file)

    def close(self) -> None:
        """Let other runs have the folder; a second call does nothing."""
        self._held.close()

    # -- the dense pass

    def save_measurement(self, measured: Measurement, names: Sequence[str]) -> None:
        """Keep what the dense pass measured."""
        importance = measured.importance_of(names)
        data = {
            "importance": importance,
            "linears": {
                name: {
                    "importance": measured.importance(name),
                    "similarities": [
                        [*pair, value] for pair, value in measured.similarities(name).items()
                    ],
                }
                for name in names
            },
        }
        _write(self._folder / DENSE_PASS, data)

    def load_measurement(self) -> SavedMeasurement | None:
        """Return what an earlier dense pass measured; None if none was completed.

        Raises:
            ResumeError: the file is damaged, or lost since layers were finished after it.
        """
        path = self._folder / DENSE_PASS
        if self._finished and not path.exists():
            raise _damaged(path, "it is gone, and layers were finished by what it held")
        return SavedMeasurement(_read(path)) if path.exists() else None

    # -- the pruning pass

    def watch(self, targets: Iterable[Target], register_hook: RegisterHook) -> None:
        """Register hooks on the finished Linears, to know when their turn comes."""
        for target in targets:
            if target.name in self._finished:
                register_hook(target.module, partial(self._pass, target.name), "forward")

    def _pass(self, name: str, *_: Any) -> None:
        self._passed.add(name)

    def restore_passed(
        self, targets: Iterable[Target], pruner: Pruner, selected: SelectionCollector
    ) -> list[Target]:
        """Prune the finished Linears whose samples have passed, as the earlier run did."""
        ready = [t for t in targets if t.name in self._passed and t.name not in pruner.reached]
        for target in ready:
            with safe_open(self._finished[target.name], "pt") as tensors:
                record = json.loads(tensors.metadata()["linears"])[target.name]
                stored = tensors.get_tensor(target.name)
            pruner.put(target, _unpack(target, stored) if record["mask"] else stored)
            selected.recall(target.name, record)
        return ready

    @torch.no_grad()
    def save_layer(
        self, targets: Sequence[Target], selected: SelectionCollector, keeps_weights: bool
    ) -> None:
        """Keep Linears that are now pruned.

        Args:
            targets: the Linears.
            selected: what was selected for them.
            keeps_weights: whether the weights that stay are as they were, so that a mask is enough.
        """
        tensors, records = {}, {}
        for target in targets:
            with align_module_device(target.module):
                weight = target.module.weight.detach().cpu()
            tensors[target.name] = _pack(weight) if keeps_weights else weight.contiguous()
            records[target.name] = {"mask": keeps_weights, **selected.record(target.name)}
        # Not the first free number: a file in between may have been lost.
        numbers = [int(file.stem) for file in self._folder.glob("[0-9]*.safetensors")]
        path = self._folder / f"{max(numbers, default=-1) + 1:05d}.safetensors"
        described = json.dumps(records)
        metadata = {"linears": described, "digest": _digest_layer(tensors, described)}
        with whole_file(path) as file:
            save_file(tensors, file, metadata=metadata)


def _write(path: Path, data: Mapping[str, Any]) -> None:
    """Write JSON with a digest of it."""
    write_json(path, {**data, "digest": _digest_json(data)})


def _read(path: Path) -> dict[str, Any]:
    """Read what `_write` wrote.

    Raises:
        ResumeError: the file is damaged or was changed.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise ValueError("it holds no JSON object")
        digest = data.pop("digest", None)
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from None
    if digest != _digest_json(data):
        raise _damaged(path, "its digest does not fit")
    return data


def _check_layer(file: Path) -> dict[str, Any]:
    """Return what a file of finished Linears tells of them.

    Raises:
        ResumeError: the file is damaged or was changed.
    """
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        described = metadata["linears"]
        if metadata["digest"] != _digest_layer(tensors, described):
            raise ValueError("its digest does not fit")
        return json.loads(described)
    except KeyError as error:
        raise _damaged(file, f"it lacks {error.args[0]}") from None
    except (OSError, ValueError, SafetensorError) as error:
        raise _damaged(file, str(error)) from None


def _damaged(file: Path, why: str) -> ResumeError:
    return ResumeError(f"{file} is damaged: {' '.join(why.split())}. {ANEW}")


def _digest_json(data: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(data, sort_keys=True).encode(), digest_size=16).hexdigest()


def _digest_layer(tensors: Mapping[str, torch.Tensor], described: str) -> str:
    digest = hashlib.blake2b(described.encode(), digest_size=16)
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}".encode())
        _add(digest, tensors[name].flatten())
    return digest.hexdigest()


class SavedMeasurement:
    """What a dense pass of an earlier run measured, in the form of a `Measurement`."""

    sees_outputs: ClassVar[bool] = True

    def __init__(self, data: Mapping[str, Any]) -> None:
        self._data = data

    def collect(self, activations: Activations) -> None:
        """Never called: the dense pass is over."""
        raise RuntimeError("the dense pass of an earlier run is complete")

    def join(self) -> None:
        """Nothing to add: a resumed run is one process."""

    def has_seen(self, name: str) -> bool:
        """All Linears were seen, or it would not have been saved."""
        return name in self._data["linears"]

    def reached(self, name: str) -> bool:
        """Whether a token was routed to it: the run that measured has looked."""
        return True

    def is_finite(self, name: str) -> bool:
        """All values were finite, or it would not have been saved."""
        return True

    def importance(self, name: str) -> float | None:
        """Return what was measured of the Linear."""
        return self._data["linears"][name]["importance"]

    def similarities(self, name: str) -> dict[Pair, float]:
        """Mean cosine similarity per pair of modalities."""
        return {(a, b): value for a, b, value in self._data["linears"][name]["similarities"]}

    def importance_of(self, names: Sequence[str]) -> dict[str, float]:
        """Return importance of the Linears, for the allocation rule."""
        return {name: self._data["importance"][name] for name in names}


def fingerprint(
    model: torch.nn.Module,
    batches: Iterable[Mapping[str, Any]],
    settings: Mapping[str, Any],
    versions: Mapping[str, str],
) -> dict[str, Any]:
    """Return what decides a run's result.

    Args:
        model: the dense model; up to ``VALUES`` values of every parameter are looked at.
        batches: the calibration batches; all of their values are.
        settings: fields of the modifier as JSON values.
        versions: versions of the packages that compute.
    """
    return {
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "model": _digest_model(model),
        "data": _digest_batches(batches),
        "settings": dict(settings),
        "versions": dict(versions),
    }


def _digest_model(model: torch.nn.Module) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for prefix, module in model.named_modules():
        if not module._parameters:
            continue
        with align_module_device(module):
            for name, value in module.named_parameters(recurse=False):
                digest.update(f"{prefix}.{name} {value.dtype} {list(value.shape)}".encode())
                flat = value.detach().flatten()
                _add(digest, flat[:: max(1, flat.numel() // VALUES)])
    return digest.hexdigest()


def _digest_batches(batches: Iterable[Mapping[str, Any]]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for batch in batches:
        for name in sorted(batch):
            value = batch[name]
            if isinstance(value, torch.Tensor):
                digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
                _add(digest, value.flatten())
            else:
                digest.update(f"{name} {value!r}".encode())
    return digest.hexdigest()


def _add(digest: Any, flat: torch.Tensor) -> None:
    digest.update(flat.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what differs between two runs, in words."""
    old_type, new_type = before.get("dtype", now["dtype"]), now["dtype"]
    if old_type != new_type:  # how much memory is free may decide it
        return [f"it computed in {old_type}, this run in {new_type}; --dtype sets it"]
    found = [
        f"its {what} had other values"
        for key, what in (("model", "model"), ("data", "calibration data"))
        if before.get(key) != now[key]
    ]
    for group in ("settings", "versions"):
        old, new = before.get(group, {}), now[group]
        found += [
            f"it has {key} {old.get(key)!r}, this run {new.get(key)!r}"
            for key in sorted({*old, *new})
            if old.get(key) != new.get(key)
        ]
    return found


def _pack(weight: torch.Tensor) -> torch.Tensor:
    """uint8 [ceil(numel / 8)], one bit a weight: 1 where it is not zero."""
    return torch.from_numpy(np.packbits((weight != 0).numpy().reshape(-1)))


def _unpack(target: Target, bits: torch.Tensor) -> torch.Tensor:
    """Return the dense weight with zeros where the bits have them."""
    with align_module_device(target.module):
        weight = target.module.weight.detach().clone()
    kept = np.unpackbits(bits.numpy(), count=weight.numel()).astype(bool)
    mask = torch.from_numpy(kept).view(weight.shape).to(weight.device)
    return weight.masked_fill_(~mask, 0.0)
