"""Starts vLLM in processes of their own, with limits on time."""

from __future__ import annotations

import base64
import contextlib
import json
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from devtools.vllm_process import ROOT, end_process, environment, run_limited


def run_jobs(
    jobs: list[dict[str, Any]],
    folder: Path,
    plugin: bool = True,
    limit: float = 500,
    environ: dict[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Run `jobs` (see runner.py) one after the other in one process.

    Args:
        jobs: what to run.
        folder: where jobs, results and the log go.
        plugin: whether vLLM loads the plugin.
        limit: seconds.
        environ: more environment variables.

    Returns:
        One result for each job.

    Raises:
        RuntimeError: the process died or took longer than `limit` seconds; with the end of its log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    results = folder / "results.json"
    command = [sys.executable, "-m", "tests.serving.runner"]
    command += [str(folder / "jobs.json"), str(results)]
    status = run_limited(command, environment(plugin) | (environ or {}), folder / "log.txt", limit)
    found = json.loads(results.read_text()) if results.exists() else []
    if len(found) != len(jobs):
        tail = (folder / "log.txt").read_text()[-3000:]
        raise RuntimeError(f"{len(found)} of {len(jobs)} jobs ran, exit {status}\n{tail}")
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """Client of a running OpenAI-compatible server."""

    def __init__(self, url: str) -> None:
        self.url = url

    def chat(self, text: str, picture: Path | None = None, **options: Any) -> dict[str, Any]:
        """One chat completion at temperature 0, with logprobs."""
        content: list[dict[str, Any]] = []
        if picture is not None:
            data = base64.b64encode(picture.read_bytes()).decode()
            content.append(
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
            )
        content.append({"type": "text", "text": text})
        body = {
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "logprobs": True,
        } | options
        request = urllib.request.Request(
            f"{self.url}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)["choices"][0]


def documented_command(model: Path, port: int) -> list[str]:
    """What ``make serve`` runs once its environment and model stand, for another model and port."""
    variables = [f"DEMO_MODEL={model}", f"PORT={port}"]
    stamp = ".venv-serve/.installed"
    done = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", f"--old-file={stamp}", *variables, "serve"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    _, *arguments = shlex.split(done.stdout.replace("\\\n", " "))
    return [sys.executable, *arguments]


@contextlib.contextmanager
def serve(model: Path, folder: Path, limit: float = 500) -> Iterator[Server]:
    """``make serve`` of a model on a free port of 127.0.0.1, ended afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    command = documented_command(model, port)
    environ = environment(plugin=True)
    del environ["VLLM_ENABLE_V1_MULTIPROCESSING"]  # as users run it: the engine in a child
    log = folder / "server.txt"
    with open(log, "w") as output:
        process = subprocess.Popen(
            command, env=environ, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        server = Server(f"http://127.0.0.1:{port}")
        deadline = time.monotonic() + limit
        while True:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start\n{log.read_text()[-3000:]}")
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                urllib.request.urlopen(f"{server.url}/health", timeout=5).close()
                break
            time.sleep(0.5)
        yield server
    finally:
        end_process(process)
