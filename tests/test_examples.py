"""The example scripts run, on small models, from a folder of their own."""

from __future__ import annotations

import json
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny", "demo"])
def test_llava_next_prunes_answers_and_saves(tmp_path: Path, model: str) -> None:
    script = str(ROOT / "examples" / "llava" / "llava_next.py")
    done = subprocess.run(
        [sys.executable, script, "--model", model, "--output", "pruned"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "question: " in done.stdout and "answer: " in done.stdout
    report = json.loads((tmp_path / "pruned" / "tamp_report.json").read_text())
    assert report["reached_sparsity"] == pytest.approx(0.5, abs=0.01)
    assert report["tokens"]["image"] > report["tokens"]["text"]
    assert (tmp_path / "pruned" / "model.safetensors").is_file()


SCRIPTS = {
    "qwen_vl/qwen2_5_vl.py": {"image", "text"},
    "qwen_vl/qwen3_vl.py": {"image", "text"},
    "gemma3/gemma3.py": {"image", "text"},
    "internvl/internvl.py": {"image", "text"},
    "omni/qwen2_5_omni.py": {"audio", "image", "text"},
    "videollama2/videollama2_av.py": {"audio", "text", "video"},
}
"""Script -> modalities that it calibrates with."""


def test_every_script_is_tested_and_in_the_table_and_uses_the_preset() -> None:
    paths = [path for path in ROOT.glob("examples/*/*.py") if "oneshot(" in path.read_text()]
    scripts = {str(path.relative_to(ROOT / "examples")) for path in paths}
    assert scripts == {*SCRIPTS, "llava/llava_next.py"}
    readme = (ROOT / "examples" / "README.md").read_text()
    for name in scripts:
        assert f"| `{name}` |" in readme, name
        assert 'preset="best"' in (ROOT / "examples" / name).read_text(), name


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_prunes_a_tiny_model_answers_and_saves(
    tmp_path: Path,
    script: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = ROOT / "examples" / script
    monkeypatch.setattr(sys, "argv", [str(path), "--tiny", "--output", str(tmp_path / "pruned")])
    runpy.run_path(str(path), run_name="__main__")
    assert "answer: " in capsys.readouterr().out
    report = json.loads((tmp_path / "pruned" / "tamp_report.json").read_text())
    assert report["reached_sparsity"] == pytest.approx(0.5, abs=0.01)
    assert set(report["tokens"]) == SCRIPTS[script]
    assert (tmp_path / "pruned" / "model.safetensors").is_file()
    assert (tmp_path / "pruned" / "tokenizer.json").is_file()


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_without_data_says_so(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = ROOT / "examples" / script
    monkeypatch.setattr(sys, "argv", [str(path)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(path), run_name="__main__")
    assert end.value.code == 2
    assert "give --data or --tiny" in capsys.readouterr().err


def test_without_a_server_asking_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as free:  # bound, but nobody listens
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        done = subprocess.run(
            [sys.executable, str(ROOT / "examples" / "serving" / "ask.py"), "--url", url],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 1
    assert done.stderr.startswith(f"no server at {url}; start `make serve`"), done.stderr
    assert done.stderr.count("\n") == 1
