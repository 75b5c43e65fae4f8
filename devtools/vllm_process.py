"""Start vLLM in a process of its own, and watch its memory."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def environment(plugin: bool) -> dict[str, str]:
    """Environment of a vLLM process that runs its engine itself, with or without the plugin."""
    changes = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",  # apply_model takes a function
        "VLLM_HOST_IP": "127.0.0.1",
    }
    environ = os.environ | changes
    if not plugin:
        environ["VLLM_PLUGINS"] = ""
    return environ


def run_limited(
    command: Sequence[str], environ: Mapping[str, str], log: Path, limit: float
) -> int | None:
    """Run a command in the root of the repository and end it, with its children, at the limit.

    Args:
        command: the command.
        environ: its whole environment.
        log: where its output goes.
        limit: seconds.

    Returns:
        Its exit status; negative if it had to be ended.
    """
    with open(log, "w") as output:
        process = subprocess.Popen(
            command,
            env=dict(environ),
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(limit)
        finally:
            end_process(process)
    return process.returncode


def end_process(process: subprocess.Popen[Any]) -> None:
    """End a process and its children, all in one session of their own."""
    for sent, seconds in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sent)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            if sent == signal.SIGKILL:
                return


def anonymous_bytes() -> int:
    """Resident memory of this process without mapped files, such as the checkpoint's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon")


class LoadWatch:
    """Time and memory of the load of a model; vLLM's log tells when its stages begin and end.

    Attributes:
        before: resident bytes before the model is built.
        built: resident bytes of the built model; stock vLLM has allocated its weights by then.
        loaded: resident bytes when the weights have been read.
        ready: resident bytes when vLLM has brought them into the form that its kernels want.
        peak: the most from `built` to `ready`.
        seconds: time of the whole load.
    """

    def __init__(self) -> None:
        self.before = self.built = self.loaded = self.ready = self.peak = 0
        self.seconds = 0.0
        self._begin = 0.0
        self._watching = False

    def _emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message.startswith("Starting to load model"):
            self._begin = time.perf_counter()
            self.before = anonymous_bytes()
        elif message.startswith("Initializing model took"):
            self.built = self.peak = anonymous_bytes()
            self._watching = True
            threading.Thread(target=self._watch, daemon=True).start()
        elif message.startswith("Loading weights took"):
            self.loaded = anonymous_bytes()
        elif "for KV cache on node" in message and self._watching:
            self._watching = False
            self.ready = anonymous_bytes()
            self.seconds = time.perf_counter() - self._begin

    def _watch(self) -> None:
        while self._watching:
            self.peak = max(self.peak, anonymous_bytes())
            time.sleep(0.001)


@contextlib.contextmanager
def watch_load() -> Iterator[LoadWatch]:
    """Watch the load of the engine that is built within."""
    watch = LoadWatch()
    # Handlers would be lost: vLLM configures its loggers anew while it starts.
    factory = logging.getLogRecordFactory()

    def observed(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = factory(*args, **kwargs)
        watch._emit(record)
        return record

    logging.setLogRecordFactory(observed)
    try:
        yield watch
    finally:
        watch._watching = False
        logging.setLogRecordFactory(factory)
