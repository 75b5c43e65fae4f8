"""The example scripts run, on small models, from a folder of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny", "box"])
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
