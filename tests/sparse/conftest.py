"""The paths of this machine, and of others through emulation, for tests that run on each."""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import tamp_modifier
from tamp_modifier.sparse import native

CSRC = Path(tamp_modifier.__file__).parent / "sparse/csrc"
EMULATION = Path(__file__).parent / "emulation"
KNOWN = re.findall(r"\bPATH\(([a-z0-9]+)\)", (CSRC / "tamp_sparse.h").read_text())
PREFIX = "emulated-"
"""What the name of a path begins with where this machine has no such instructions."""
ABSENT = [PREFIX + name for name in KNOWN if name not in native.paths()]
PATHS = [*native.paths(), *(pytest.param(name, marks=pytest.mark.slow) for name in ABSENT)]


def run_compiler(*arguments: str) -> None:
    """Run the C compiler; what it complains of is the error."""
    done = subprocess.run(["cc", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def emulated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The native library with all paths, whatever this processor has: slow, but computes alike."""
    base = tmp_path_factory.getbasetemp()
    shared = "PYTEST_XDIST_WORKER" in os.environ  # the workers' folders lie in one of the run
    folder = (base.parent if shared else base) / "emulated"
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        library = folder / "emulated.so"
        if not library.exists():
            _build(folder, library)
    return library


def _build(folder: Path, library: Path) -> None:
    flags = ["-fPIC", "-O1", "-fvisibility=hidden", "-Wno-psabi"]
    stand_in = ["-DTAMP_EMULATED", f"-I{EMULATION}"]

    def compiled(source: Path) -> str:
        target = str(folder / f"{source.stem}.o")
        run_compiler("-c", *flags, *stand_in, str(source), "-o", target)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, sorted(CSRC.glob("*.c"))))
    unfinished = folder / "unfinished.so"
    run_compiler("-shared", *objects, "-o", str(unfinished), "-lm")
    unfinished.rename(library)


@pytest.fixture(scope="session")
def emulated_library(emulated_file: Path) -> ctypes.CDLL:
    """That library, loaded."""
    return native.load(emulated_file)


@pytest.fixture
def use_path() -> Iterator[Callable[[str], None]]:
    """`native.use` for the duration of a test."""
    before = native.backend()
    yield native.use
    native.use(before)


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest, use_path: Callable[..., None]) -> str:
    """Each path in turn, in use: those of this machine, and the others emulated."""
    name: str = request.param
    if name.startswith(PREFIX):
        library = request.getfixturevalue("emulated_library")
        use_path(name.removeprefix(PREFIX), library=library)
    else:
        use_path(name)
    return name
