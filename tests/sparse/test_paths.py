"""Which paths a machine has, how one is forced, and what happens without the native library."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
import torch

import tamp_modifier
from tamp_modifier import sparse
from tamp_modifier.sparse import native
from tests.sparse.conftest import KNOWN, PREFIX
from tests.sparse.processes import run_python

PACKAGE = Path(tamp_modifier.__file__).parent


def test_the_best_path_of_this_machine_is_used_unless_one_is_forced():
    assert native.paths()[-2:] == ("portable", "torch")
    assert set(native.paths()) <= {*KNOWN, "torch"}
    assert sparse.backend() == os.environ.get(native.PATH_VARIABLE, native.paths()[0])


@pytest.mark.parametrize("path", native.paths())
def test_each_path_can_be_forced(use_path, path):
    use_path(path)
    assert sparse.backend() == path
    assert native.available() == (path != "torch")
    code = "from tamp_modifier import sparse; print(sparse.backend())"
    assert run_python(code, TAMP_SPARSE_PATH=path).stdout.strip() == path


ANY = 2**63 - 1
# bf16, fp16, fp32. Of the processors with AMX only some multiply fp16 in tiles.
MOST_ROWS = {
    "amx": [(ANY, ANY, 64), (ANY, 64, 64)],
    "avx512bf16": [(ANY, 64, 64)],
    "avx512": [(64, 64, 64)],
    "avx2": [(32, 32, 8)],
    "portable": [(8, 8, 8)],
}


def test_rows_up_to_which_a_path_pays(path):
    if path == "torch":
        with pytest.raises(RuntimeError, match="not in use"):
            native.most_rows(torch.bfloat16)
        return
    rows = tuple(map(native.most_rows, (torch.bfloat16, torch.float16, torch.float32)))
    assert rows in MOST_ROWS[path.removeprefix(PREFIX)]


@pytest.mark.parametrize("name", ["sse9", "", "AVX2", "portable "])
def test_an_unknown_path_is_refused_with_those_that_are_supported(use_path, name):
    before = sparse.backend()
    allowed = re.escape(", ".join(native.paths()))
    with pytest.raises(ValueError, match=f"path is {name!r}, this machine supports {allowed}$"):
        use_path(name)
    assert sparse.backend() == before


def test_a_path_of_another_processor_is_refused(use_path):
    for name in set(KNOWN) - set(native.paths()):
        with pytest.raises(ValueError, match=f"path is {name!r}, this machine supports "):
            use_path(name)


def test_an_unknown_path_in_the_environment_is_refused():
    code = "from tamp_modifier import sparse; sparse.backend()"
    result = run_python(code, TAMP_SPARSE_PATH="sse9")
    allowed = ", ".join(native.paths())
    last = result.stderr.strip().splitlines()[-1]
    assert last == f"ValueError: TAMP_SPARSE_PATH is 'sse9', this machine supports {allowed}"


@pytest.fixture(scope="module")
def unbuilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package as an install without a compiler leaves it."""
    folder = tmp_path_factory.mktemp("unbuilt")
    left_out = shutil.ignore_patterns("*.so", "*.pyd", "__pycache__", "model")
    shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=left_out)
    return folder


def test_without_the_native_library_torch_takes_over_with_one_warning(unbuilt):
    result = run_python(
        "import torch\n"
        "from tamp_modifier import sparse\n"
        "w = torch.eye(8); p = sparse.pack(w)\n"
        "assert torch.equal(sparse.linear(w, p), w) and torch.equal(sparse.unpack(p), w)\n"
        "print(sparse.backend())\n",
        cwd=unbuilt,
        TAMP_SPARSE_PATH="",
    )
    assert result.stdout.strip() == "torch", result.stderr
    assert result.stderr.count("was not built") == 1


def test_without_the_native_library_torch_can_be_forced_in_silence(unbuilt):
    code = "from tamp_modifier import sparse; print(sparse.backend())"
    result = run_python(code, cwd=unbuilt, TAMP_SPARSE_PATH="torch")
    assert result.stdout.strip() == "torch" and "built" not in result.stderr


def test_without_the_native_library_a_forced_path_is_refused(unbuilt):
    code = "from tamp_modifier import sparse; sparse.backend()"
    result = run_python(code, cwd=unbuilt, TAMP_SPARSE_PATH="avx2")
    assert "TAMP_SPARSE_PATH is 'avx2', this machine supports torch (the native" in result.stderr


BEHIND = """
import ctypes, mmap, sys, torch
from pathlib import Path
from tamp_modifier import sparse
from tamp_modifier.sparse import native
native.use("avx512", library=native.load(Path(sys.argv[1])))
memory = mmap.mmap(-1, 2 * mmap.PAGESIZE)
pages = torch.frombuffer(memory, dtype=torch.uint8)
protect = ctypes.CDLL(None).mprotect
assert protect(ctypes.c_void_p(pages.data_ptr() + mmap.PAGESIZE), mmap.PAGESIZE, 0) == 0
weight = pages[: mmap.PAGESIZE].view(torch.bfloat16)[-3 * 64 :].view(3, 64).fill_(1)
assert torch.equal(sparse.unpack(sparse.pack(weight)), weight)
print("read")
"""


@pytest.mark.skipif(os.name != "posix", reason="needs mprotect")
@pytest.mark.slow
def test_packing_reads_nothing_behind_a_weight(emulated_file):
    """A block has four rows; this weight has three, and no memory may be read where it ends."""
    result = run_python(BEHIND.replace("sys.argv[1]", repr(str(emulated_file))))
    assert result.stdout.strip() == "read", result.stderr
