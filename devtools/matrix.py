"""Runs the quick tests of pruning on every supported Python that is found: ``make matrix``.

``python -m devtools.matrix --python 3.10 3.13 -- tests/scores`` runs some tests on two of them.
Environments stay in output/matrix, one a version; the second time nothing is installed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENVIRONMENTS = ROOT / "output" / "matrix"
VERSIONS = ("3.10", "3.11", "3.12", "3.13")
QUICK = ("-m", "not slow and not serving")
TESTS = ("tests",)
"""Those of the package; the benchmarks have requirements of their own, and one Python."""
TORCH = "torch==2.13.0"


def candidates(version: str) -> Iterator[Path]:
    """Return where an interpreter may be: on the path, of uv, of pyenv."""
    on_path = shutil.which(f"python{version}")
    if on_path:
        yield Path(on_path)
    if shutil.which("uv"):
        found = subprocess.run(["uv", "python", "find", version], capture_output=True, text=True)
        if found.returncode == 0:
            yield Path(found.stdout.strip())
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    yield from sorted(pyenv.glob(f"{version}.*/bin/python"), reverse=True)


def find(version: str) -> Path | None:
    """Return an interpreter that runs and is of this version, None if there is none."""
    code = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"
    for python in candidates(version):
        done = subprocess.run([python, "-c", code], capture_output=True, text=True)
        if done.returncode == 0 and done.stdout.strip() == version:
            return python
    return None


def environment(version: str, python: Path, torch: str) -> Path:
    """Make the environment of a version if need be; return its interpreter."""
    folder = ENVIRONMENTS / version
    inside, stamp = folder / "bin" / "python", folder / ".installed"
    if not stamp.is_file():
        print(f"== Python {version}: installing", flush=True)
        subprocess.run([python, "-m", "venv", "--clear", folder], check=True)
        pip = [str(inside), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, torch, "-e", ".[compress,test]"], cwd=ROOT, check=True)
        stamp.touch()
    return inside


def run(version: str, torch: str, arguments: Sequence[str]) -> tuple[bool, str]:
    """Test one version; return whether nothing failed, and what to say."""
    python = find(version)
    if python is None:
        return True, "not tested, no such interpreter on the path, of uv or of pyenv"
    try:
        inside = environment(version, python, torch)
    except subprocess.CalledProcessError as error:
        return False, f"could not be installed: {' '.join(map(str, error.cmd))}"
    print(f"== Python {version}: testing", flush=True)
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [str(inside), "-m", "pytest", "-q", *QUICK, *(arguments or TESTS)]
    tests = subprocess.Popen(
        command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    last = ""
    assert tests.stdout is not None
    for line in tests.stdout:
        print(line, end="", flush=True)
        last = line.strip() or last
    return tests.wait() == 0, last


def main() -> None:
    """Test all, then tell of each version."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--python", nargs="+", default=VERSIONS, metavar="X.Y")
    parser.add_argument("--torch", default=TORCH, help="what to install (default: %(default)s)")
    parser.add_argument("tests", nargs="*", help="arguments for pytest, after --")
    arguments = parser.parse_args()
    results = {
        version: run(version, arguments.torch, arguments.tests) for version in arguments.python
    }
    print()
    for version, (_, said) in results.items():
        print(f"Python {version}: {said}")
    sys.exit(not all(good for good, _ in results.values()))


if __name__ == "__main__":
    main()
