"""Builds wheel and sdist into dist/ and tries them as those who install them do: ``make dist``.

The wheel is built from the sdist alone and made fit for old systems (auditwheel). twine checks
both, readme_renderer renders the page of the index into build/dist/index.html, the wheel is
installed in a fresh environment and multiplies, and the sdist, unpacked and built, runs its quick
tests.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
WORK = ROOT / "build" / "dist"
"""For what is not to be uploaded."""
LARGEST = 20_000_000
"""Bytes of a wheel; the demo model is 11 MB of it."""

TRY = """
import torch
from tamp_modifier import __version__, sparse
torch.manual_seed(0)
weight = torch.randn(256, 512).masked_fill(torch.rand(256, 512) < 0.5, 0)
packed, x = sparse.pack(weight), torch.randn(3, 512)
assert torch.equal(sparse.unpack(packed), weight)
torch.testing.assert_close(sparse.linear(x, packed), x @ weight.T, rtol=1e-4, atol=1e-4)
assert sparse.backend() != "torch", "the wheel has no native kernels for this machine"
print(f"tamp-modifier {__version__} multiplies with the {sparse.backend()} kernels")
"""


def say(step: str) -> None:
    """Announce a step."""
    print(f"== {step}", flush=True)


def run(*command: str | Path, folder: Path = ROOT) -> None:
    """Run a command; the environment of this checkout does not reach it."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([str(part) for part in command], cwd=folder, env=environ, check=True)


def build() -> tuple[Path, Path]:
    """Return wheel and sdist in dist/, which holds nothing else."""
    for folder in (DIST, WORK):
        shutil.rmtree(folder, ignore_errors=True)
    raw = WORK / "raw"
    say("building the sdist, and the wheel from it")
    run(sys.executable, "-m", "build", "--quiet", "--no-isolation", "--outdir", raw)
    (wheel,), (sdist,) = raw.glob("*.whl"), raw.glob("*.tar.gz")
    say("making the wheel fit for older systems")
    run(sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", DIST, wheel)
    (repaired,) = DIST.glob("*.whl")
    if not re.search(r"-py3-none-manylinux[\w.]+\.whl$", repaired.name):
        sys.exit(f"error: {repaired.name} is not for every Python on manylinux")
    return repaired, Path(shutil.copy(sdist, DIST))


def check(wheel: Path, sdist: Path) -> None:
    """Check size, content, metadata and the page of the index."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    strange = [n for n in names if re.search(r"(^|/)(tests|benchmarks)/|\.[ch]$", n)]
    if strange or "tamp_modifier/sparse/_native.so" not in names:
        sys.exit(f"error: {wheel.name} lacks the kernels or holds what it should not: {strange}")
    if wheel.stat().st_size > LARGEST:
        sys.exit(f"error: {wheel.name} has {wheel.stat().st_size} bytes, allowed are {LARGEST}")
    say("checking the metadata")
    run(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist)
    say("rendering the page of the index")
    from readme_renderer.markdown import render

    text = read_metadata(wheel)
    page = render(text)
    if page is None:
        sys.exit("error: the README cannot be rendered")
    targets = re.findall(r'(?:href|src)="([^"]+)"', page)
    broken = [t for t in targets if ":" not in t and not t.startswith("#")]
    if broken:
        sys.exit(f"error: the page of the index would link to {', '.join(broken)}")
    (WORK / "index.html").write_text(page, encoding="utf-8")


def read_metadata(wheel: Path) -> str:
    """Return the long description of a wheel, in Markdown."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return archive.read(name).decode().partition("\n\n")[2]


def try_wheel(wheel: Path, torch: str) -> None:
    """Install the wheel alone, in a fresh environment, and multiply."""
    say("installing the wheel in a fresh environment")
    folder = WORK / "venv"
    run(sys.executable, "-m", "venv", folder)
    run(folder / "bin/pip", "install", "--quiet", torch, wheel)
    run(folder / "bin/python", "-c", TRY, folder=WORK)
    run(folder / "bin/tamp", "env", folder=WORK)
    shutil.rmtree(folder)


def try_sdist(sdist: Path, python: Path, tests: Sequence[str]) -> None:
    """Unpack the sdist, build it in place, and run its quick tests with an environment's packages.

    Args:
        sdist: What to try.
        python: Of an environment with the extras "compress" and "test".
        tests: Arguments for pytest.
    """
    say("testing the unpacked sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(WORK / "sdist", filter="data")
    (unpacked,) = (WORK / "sdist").iterdir()
    run(python, "setup.py", "--quiet", "build_ext", "--inplace", folder=unpacked)
    where = "import tamp_modifier as t; print(t.__file__)"
    found = subprocess.run(
        [python, "-c", where], cwd=unpacked, capture_output=True, text=True, check=True
    )
    if not Path(found.stdout.strip()).is_relative_to(unpacked):
        sys.exit(f"error: the tests would try {found.stdout.strip()}, not the sdist")
    run(python, "-m", "pytest", "-q", "-m", "not slow and not serving", *tests, folder=unpacked)


def main() -> None:
    """Build and try both."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--torch", required=True, help="what is installed beside the wheel")
    parser.add_argument("--test-python", type=Path, required=True, help="what runs the tests")
    parser.add_argument("tests", nargs="*", help="arguments for pytest, after --")
    arguments = parser.parse_args()
    try:
        wheel, sdist = build()
        check(wheel, sdist)
        try_wheel(wheel, arguments.torch)
        try_sdist(sdist, arguments.test_python.absolute(), arguments.tests)
    except subprocess.CalledProcessError as error:
        sys.exit(f"error: {' '.join(error.cmd)} ended with status {error.returncode}")
    for file in (wheel, sdist):
        print(f"{file.relative_to(ROOT)}: {file.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
