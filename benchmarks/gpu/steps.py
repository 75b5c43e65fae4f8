"""The steps of the check, each in a process of its own with a limit of time."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Result = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """A part of the check.

    Attributes:
        limit: seconds after which it is stopped.
        about: heading of its results.
        needs: modules without which it is left out.
        run: ``small -> results``.
        card: whether it needs a GPU even if small.
    """

    limit: float
    about: str
    needs: tuple[str, ...]
    run: Callable[[bool], Iterator[Result]]
    card: bool = False


def _device() -> Any:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _check(small: bool) -> Iterator[Result]:
    from benchmarks.gpu import check

    return check.run(_device(), small)


def _kernels(kind: str) -> Callable[[bool], Iterator[Result]]:
    def run(small: bool) -> Iterator[Result]:
        from benchmarks.gpu import kernels

        size = kernels.sizes(_device(), small)
        if kind == "float":
            yield kernels.copy_bandwidth(size)
        yield from kernels.measure(kind, size, small)

    return run


def _semi_structured(small: bool) -> Iterator[Result]:
    from benchmarks.gpu import kernels

    return kernels.semi_structured(kernels.sizes(_device(), small))


def _prune(small: bool) -> Iterator[Result]:
    from benchmarks.gpu import pruning

    return pruning.run(_device(), small)


TRITON = ("torch", "triton")
STEPS = {
    "check": Step(100, "Triton kernels against fp64", TRITON, _check),
    "float": Step(110, "bf16 against cuBLAS", TRITON, _kernels("float")),
    "semi": Step(40, "torch's 2:4 against cuBLAS, bf16", ("torch",), _semi_structured, card=True),
    "int8": Step(90, "INT8 activations and weights", TRITON, _kernels("int8")),
    "int4": Step(100, "INT4 weights", TRITON, _kernels("int4")),
    "prune": Step(
        130, "pruning a billion random parameters", ("torch", "llmcompressor"), _prune
    ),
}  # fmt: skip
"""In the order in which they run; the limits add up to 570 seconds."""


def run_here(name: str, small: bool) -> None:
    """Run a step in this process, with one line of JSON on stdout for each result."""
    # What libraries print goes to stderr.
    lines = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import torch

    torch.manual_seed(0)
    for result in STEPS[name].run(small):
        lines.write(json.dumps(result) + "\n")
        lines.flush()


def left_out(step: Step, card: bool) -> str:
    """Why a step cannot run here; empty where it can."""
    missing = [module for module in step.needs if importlib.util.find_spec(module) is None]
    if missing:
        return f"{' and '.join(missing)} cannot be imported"
    return "needs a GPU" if step.card and not card else ""


def _kill(process: subprocess.Popen[str]) -> None:
    """End a step and what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def command(name: str, small: bool) -> list[str]:
    """Return what runs a step in a process of its own."""
    return [sys.executable, "-m", "benchmarks.gpu", "--step", name, *["--small"] * small]


def run_apart(
    name: str, small: bool, card: bool, seconds: float, keep: Callable[[Result], None]
) -> Result:
    """Run a step in a process of its own.

    Args:
        name: one of `STEPS`.
        small: see `benchmarks.gpu`.
        card: whether torch sees a GPU; without, Triton interprets.
        seconds: after which it is stopped.
        keep: called with each result as it comes.

    Returns:
        `status`, "done", "failed", "cut off" or "left out", seconds and `message`.
    """
    message = left_out(STEPS[name], card)
    if message:
        return {"status": "left out", "seconds": 0.0, "message": message}
    environment = dict(os.environ) if card else {**os.environ, "TRITON_INTERPRET": "1"}
    begin, passed, late = time.monotonic(), True, threading.Event()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command(name, small),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )

        def stop() -> None:
            late.set()
            _kill(process)

        timer = threading.Timer(max(seconds, 0.1), stop)
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                try:
                    result = json.loads(line)
                except json.JSONDecodeError:  # the end of a step that was cut off
                    break
                passed = passed and result.get("passed", True)
                keep(result)
            process.wait()
        finally:
            timer.cancel()
            if process.poll() is None:
                _kill(process)
                process.wait()
        log.seek(0)
        tail = log.read()[-2000:]
    taken = time.monotonic() - begin
    if not passed:
        return {"status": "failed", "seconds": taken, "message": "a result is wrong"}
    if late.is_set():
        return {"status": "cut off", "seconds": taken, "message": f"after {seconds:.0f} s"}
    if process.returncode:
        return {"status": "failed", "seconds": taken, "message": tail}
    return {"status": "done", "seconds": taken, "message": ""}
