"""Everything that a command writes has the mode that the user's umask asks for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tamp_modifier import cli
from tests.data.files import asked, jsonl
from tests.data.folders import write_model


def modes(folder: Path) -> dict[str, int]:
    return {
        path.relative_to(folder).as_posix(): path.stat().st_mode & 0o777
        for path in folder.rglob("*")
    }


@pytest.mark.slow
@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_outputs_follow_the_umask(umask: int, tmp_path: Path) -> None:
    model = write_model("llama", tmp_path / "model")
    data = jsonl(tmp_path / "data.jsonl", [asked(question="what is red ?", answer="cat")] * 8)
    out = tmp_path / "out"
    out.mkdir()
    training = ["--samples", "4", "--learning-rate", "0.01", "--batch-size", "2"]
    commands = [
        ["prune", model, "--data", data, "--output", out / "pruned", "--selection", "all"],
        ["recover", out / "pruned", "--teacher", model, "--data", data, *training]
        + ["--output", out / "recovered"],
        ["pack", out / "pruned", out / "packed"],
        ["unpack", out / "packed", out / "unpacked"],
        ["report", out / "pruned", "--html", out / "report.html", "--figures", out / "figures"],
    ]
    before = os.umask(umask)
    try:
        for command in commands:
            assert cli.main([str(part) for part in command]) == 0
    finally:
        os.umask(before)
    found = modes(out)
    for name in ("pruned", "recovered", "packed", "unpacked"):
        assert f"{name}/model.safetensors" in found and f"{name}/README.md" in found
    assert "report.html" in found and "figures/sparsity.png" in found
    wanted = {name: (0o777 if (out / name).is_dir() else 0o666) & ~umask for name in found}
    assert found == wanted
