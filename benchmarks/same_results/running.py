"""Run one recipe: in this process, killed and resumed, or in two processes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from llmcompressor import oneshot
from torch.utils.data import DataLoader

from benchmarks.same_results.outcome import Outcome, differences, outcome_of
from benchmarks.same_results.recipes import MODELS, RECIPES, ROOT, Recipe, make_batches
from tamp_modifier import TAMPModifier

FINISHED = 3
"""Decoder layers that are finished when a run that is to be resumed is killed."""


def run(name: str) -> Outcome:
    """Run one recipe of `RECIPES` its way.

    Raises:
        RuntimeError: a process that it starts ends otherwise than it should.
    """
    recipe = RECIPES[name]
    with tempfile.TemporaryDirectory(prefix="same-results-") as temporary:
        folder = Path(temporary)
        child = ["-m", "benchmarks.same_results", "--child", name, temporary]
        if recipe.way == "processes":
            torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
            _start([*torchrun, *child], status=0)
            return json.loads((folder / "outcome.json").read_text(encoding="utf-8"))
        if recipe.way == "resumed":
            _start(child, status=-signal.SIGKILL)
            return prune(recipe, folder, folder / "layers")
        return prune(recipe, folder)


def run_child(name: str, folder: Path) -> None:
    """Do what every process that `run` starts has to.

    Args:
        name: of the recipe.
        folder: of the run; the first of several processes leaves ``outcome.json`` there.
    """
    recipe = RECIPES[name]
    if recipe.way == "resumed":
        prune(recipe, folder, folder / "layers", kill=True)
        raise RuntimeError(f"{name} was to be killed after {FINISHED} decoder layers, and was not")
    dist.init_process_group("gloo")
    own = folder / str(dist.get_rank())
    own.mkdir()
    found = prune(recipe, own)
    if dist.get_rank() == 0:
        (folder / "outcome.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


def _start(arguments: Sequence[str], status: int) -> None:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    if done.returncode != status:
        raise RuntimeError(f"status {done.returncode} instead of {status}:\n{done.stderr}")


def prune(
    recipe: Recipe, folder: Path, resume: Path | None = None, *, kill: bool = False
) -> Outcome:
    """Prune a fresh model, with this process's share of the samples.

    Args:
        recipe: the recipe.
        folder: for the model, the report and the recipe.
        resume: where finished decoder layers are kept, if at all.
        kill: end this process as soon as `FINISHED` decoder layers are kept.
    """
    torch.set_num_threads(1)
    report = folder / "report.json"
    # Progress bars and the table of every report.
    with contextlib.redirect_stderr(io.StringIO()):
        model = MODELS[recipe.model](folder)
        if kill:
            assert resume is not None
            layer = model.get_decoder().layers[FINISHED]
            layer.register_forward_pre_hook(partial(_kill_when_finished, resume))
        batches: Any = _share(make_batches(recipe.padded))
        loader: Any = DataLoader(batches, batch_size=None)
        modifier = _with_paths(recipe, report, resume)
        torch.manual_seed(0)
        oneshot(model=model, dataset=loader, recipe=modifier, **recipe.arguments)
    return _agreed(model, report)


def _kill_when_finished(resume: Path, *_: Any) -> None:
    if len(list(resume.glob("*.safetensors"))) >= FINISHED:
        os.kill(os.getpid(), signal.SIGKILL)


def _with_paths(recipe: Recipe, report: Path, resume: Path | None) -> Any:
    """Return what ``oneshot`` gets: a modifier, or the path of a copy of the recipe's file."""
    if not isinstance(recipe.source, Path):
        fields = {**recipe.source, "report_path": str(report)}
        if resume is not None:
            fields["resume_path"] = str(resume)
        return TAMPModifier(**fields)
    head = "    TAMPModifier:\n"
    text = recipe.source.read_text(encoding="utf-8")
    copy = report.with_name("recipe.yaml")
    copy.write_text(
        text.replace(head, f"{head}      report_path: {json.dumps(str(report))}\n"),
        encoding="utf-8",
    )
    return str(copy)


def _share(batches: list[Any]) -> list[Any]:
    """Neighbouring batches for this process: one and two of three, or all."""
    if not dist.is_initialized():
        return batches
    first, last = (len(batches) * (dist.get_rank() + i) // dist.get_world_size() for i in (0, 1))
    return batches[first:last]


def _agreed(model: torch.nn.Module, report_path: Path) -> Outcome:
    """Return the outcome, the same in all processes; the first one has the report.

    Raises:
        RuntimeError: the processes have different weights.
    """
    if not dist.is_initialized():
        return outcome_of(model, json.loads(report_path.read_text(encoding="utf-8")))
    report = [json.loads(report_path.read_text()) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(report)
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, outcome_of(model, report[0]))  # type: ignore[arg-type]
    for number, other in enumerate(everyone):
        for difference in differences(everyone[0], other):
            raise RuntimeError(f"process {number} differs from process 0: {difference}")
    return everyone[0]
