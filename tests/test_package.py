"""The package as users get it: light to import, whole when built, without junk."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tamp_modifier import __version__

BLOCK = """
import sys
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""


def python(code: str, *, absent: tuple[str, ...] = ()) -> str:
    """Runs code in a fresh interpreter, in which some packages look as if not installed."""
    code = (BLOCK.format(names=set(absent)) if absent else "") + code
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_light() -> None:
    python(
        "import sys, tamp_modifier\n"
        "heavy = {'llmcompressor', 'transformers', 'vllm', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert tamp_modifier.__version__ and 'TAMPModifier' in tamp_modifier.__all__\n"
    )


def test_import_costs_little_on_top_of_torch() -> None:
    seconds = float(
        python(
            "import time, torch\n"
            "start = time.perf_counter()\n"
            "import tamp_modifier\n"
            "print(time.perf_counter() - start)\n"
        )
    )
    print(f"import tamp_modifier takes {1000 * seconds:.1f} ms on top of torch")
    assert seconds < 3


def test_the_method_works_where_llmcompressor_is_absent() -> None:
    python(
        "import torch\n"
        "from tamp_modifier import allocation, diversity, masks, report, selection\n"
        "from tamp_modifier import cli, sparse, statistics, tokens\n"
        "mask = masks.wanda_mask(torch.randn(4, 8), torch.rand(8), 0.5)\n"
        "assert mask.sum() == 16\n",
        absent=("llmcompressor", "vllm", "transformers", "matplotlib", "compressed_tensors"),
    )


def test_what_is_missing_is_told_where_everything_is_missing() -> None:
    said = python(
        "from tamp_modifier import cli\ncli.main(['env'])\n",
        absent=("llmcompressor", "vllm", "transformers", "safetensors", "numpy", "packaging"),
    )
    assert "to prune" in said and "CPU kernels" in said


@pytest.mark.slow
def test_asking_for_the_modifier_without_llmcompressor_tells_what_to_install() -> None:
    python(
        "import tamp_modifier\n"
        "try:\n"
        "    tamp_modifier.TAMPModifier\n"
        "except ImportError as error:\n"
        "    assert 'pip install' in str(error) and 'compress' in str(error), error\n"
        "else:\n"
        "    raise AssertionError('no error')\n",
        absent=("llmcompressor",),
    )


def test_unknown_names_are_attribute_errors() -> None:
    import tamp_modifier

    with pytest.raises(AttributeError, match="has no attribute 'TampModifier'"):
        _ = tamp_modifier.TampModifier


@pytest.mark.slow
def test_importing_the_modifier_registers_it_for_yaml_recipes() -> None:
    python(
        "from tamp_modifier import TAMPModifier\n"
        "from llmcompressor.modifiers.factory import ModifierFactory\n"
        "ModifierFactory.refresh()\n"
        "made = ModifierFactory.create('TAMPModifier', allow_registered=True,\n"
        "                              allow_experimental=False, sparsity=0.4)\n"
        "assert type(made) is TAMPModifier and made.sparsity == 0.4\n"
    )


def test_the_version_is_said_once_and_the_changelog_begins_with_it() -> None:
    root = Path(__file__).parent.parent
    project, _ = (root / "pyproject.toml").read_text().split("[project.optional-dependencies]")
    assert 'dynamic = ["version", "readme"]' in project and "\nversion =" not in project
    newest = re.findall(r"^## \[([\w.]+)\]", (root / "CHANGELOG.md").read_text(), re.M)[0]
    assert newest == __version__.removesuffix(".dev0")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An sdist of a copy of this tree, and a wheel made from that sdist alone."""
    root = Path(__file__).parent.parent
    folder = tmp_path_factory.mktemp("build")
    left_out = shutil.ignore_patterns(
        ".git",
        ".venv*",
        "output",
        "runs",
        "build",
        "dist",
        "*.egg-info",
        "*.so",
        ".*_cache",
        ".hypothesis",
    )
    shutil.copytree(root, folder / "tree", ignore=left_out)
    sdist, _ = backend(folder / "tree", "build_sdist", folder)
    wheel, _ = backend(unpack(sdist, folder / "unpacked"), "build_wheel", folder)
    return sdist, wheel


def unpack(sdist: Path, folder: Path) -> Path:
    """The tree inside an sdist."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = folder.iterdir()
    return unpacked


def backend(tree: Path, hook: str, output: Path, **environment: str) -> tuple[Path, str]:
    """Calls the build backend as pip does, with the setuptools of this environment.

    Returns:
        What was built, and what was said on standard error.
    """
    code = f"from setuptools import build_meta; print(build_meta.{hook}({str(output)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tree,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return output / done.stdout.split()[-1], done.stderr


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(built: tuple[Path, Path]) -> None:
    _, wheel = built
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    root = Path(__file__).parent.parent
    modules = {path.relative_to(root).as_posix() for path in (root / "tamp_modifier").rglob("*.py")}
    tables = {f"tamp_modifier/sparse/{name}.json" for name in ("choice", "gpu_table")}
    needed = modules | tables | {"tamp_modifier/sparse/_native.so"}
    assert needed <= set(names), sorted(needed - set(names))
    allowed = re.compile(
        r"tamp_modifier/([a-z_]+/)*([a-z0-9_]+\.py|py\.typed)"
        r"|tamp_modifier/sparse/_native\.so"
        r"|tamp_modifier/demo/model/[\w.-]+"
        r"|tamp_modifier/sparse/(choice|gpu_table)\.json"
        rf"|tamp_modifier-{re.escape(__version__)}\.dist-info/.+"
    )
    assert [name for name in names if not allowed.fullmatch(name)] == []
    assert "tamp = tamp_modifier.cli:main" in entry_points(wheel)
    assert wheel.name.startswith(f"tamp_modifier-{__version__}-py3-none-")


@pytest.mark.slow
def test_the_sdist_holds_its_tests_and_what_they_need(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    root = Path(__file__).parent.parent
    folders = ("tests", "recipes", "examples", "docs", "devtools", "benchmarks", "constraints")
    files = [path for folder in folders for path in (root / folder).rglob("*") if path.is_file()]
    left_out = re.compile(r"__pycache__|\.so$|\.egg-info/|benchmarks/(smolav/weights|build)/")
    wanted = {path.relative_to(root).as_posix() for path in files}
    assert {name for name in wanted - inside if not left_out.search(name)} == set()
    assert {"Makefile", "conftest.py", "CHANGELOG.md", "MANIFEST.in"} <= inside


@pytest.mark.slow
def test_without_a_compiler_a_warning_tells_and_the_wheel_works_through_torch(
    built: tuple[Path, Path], tmp_path: Path
) -> None:
    tree = unpack(built[0], tmp_path / "unpacked")
    wheel, said = backend(tree, "build_wheel", tmp_path, CC="false")
    assert "WARNING: the native kernels of tamp-modifier were not built" in said
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".so")]
        archive.extractall(tmp_path / "installed")
    command = [sys.executable, "-m", "tamp_modifier.cli", "env"]
    place = {"PYTHONPATH": str(tmp_path / "installed")}
    done = subprocess.run(
        command, cwd=tmp_path / "installed", env=os.environ | place, capture_output=True, text=True
    )
    assert "torch: the native library was not built (no C compiler" in done.stdout, done.stderr


@pytest.mark.slow
def test_wheel_and_sdist_carry_the_demo_model(built: tuple[Path, Path]) -> None:
    root = Path(__file__).parent.parent
    model = {
        path.relative_to(root).as_posix() for path in (root / "tamp_modifier/demo/model").iterdir()
    }
    assert "tamp_modifier/demo/model/model.safetensors" in model
    sdist, wheel = built
    with zipfile.ZipFile(wheel) as archive:
        assert model <= set(archive.namelist())
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert model <= inside
    assert {"LICENSE", "README.md", "pyproject.toml"} <= inside


def entry_points(wheel: Path) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("entry_points.txt"))
        return archive.read(name).decode()
