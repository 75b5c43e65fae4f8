"""A resume folder that was damaged or changed is refused by the file's name."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tamp_modifier import TAMPModifier
from tamp_modifier.demo.evaluation import MODEL_FOLDER
from tamp_modifier.files import only_writer
from tamp_modifier.pruning.resume import forget
from tests.architectures.models import build
from tests.running import linear_weights, prune

LAYERS = ("00000.safetensors", "00001.safetensors")


def run(folder: Path, config: Path) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model, batches, expected = build("llava_llama")
    prune(model, batches, TAMPModifier(sparsity=0.5, resume_path=str(folder)), config)
    return linear_weights(model, expected.targets)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A folder in which every layer is finished, and the weights."""
    folder = tmp_path_factory.mktemp("finished")
    weights = run(folder / "partial", folder / "config")
    return folder / "partial", weights


def edit(name: str, change: Callable[[bytearray], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        change(data)
        (folder / name).write_bytes(bytes(data))

    return apply


def flip(data: bytearray) -> None:
    data[-1] ^= 0xFF


def halve(data: bytearray) -> None:
    del data[len(data) // 2 :]


def importance(value: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        file = folder / "dense_pass.json"
        data = json.loads(file.read_text())
        data["importance"][next(iter(data["importance"]))] = value
        file.write_text(json.dumps(data))

    return apply


DAMAGE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "flipped mask": (LAYERS[0], edit(LAYERS[0], flip)),
    "truncated layer": (LAYERS[1], edit(LAYERS[1], halve)),
    "empty layer": (LAYERS[1], edit(LAYERS[1], bytearray.clear)),
    "file of something else": ("00009.safetensors", lambda f: (f / "00009.safetensors").touch()),
    "importance": ("dense_pass.json", importance(1e9)),
    "importance of another type": ("dense_pass.json", importance("x")),
    "no dense pass": ("dense_pass.json", lambda f: (f / "dense_pass.json").write_text("{}")),
    "lost dense pass": ("dense_pass.json", lambda f: (f / "dense_pass.json").unlink()),
    "half a dense pass": ("dense_pass.json", edit("dense_pass.json", halve)),
    "run garbage": ("run.json", lambda f: (f / "run.json").write_text("{")),
    "run list": ("run.json", lambda f: (f / "run.json").write_text("[]")),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_changed_file_is_refused_by_name(
    kind: str, finished: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    name, damage = DAMAGE[kind]
    shutil.copytree(finished[0], tmp_path / "partial")
    damage(tmp_path / "partial")
    with pytest.raises(ValueError, match=f"{name} is damaged: .*--restart"):
        run(tmp_path / "partial", tmp_path / "config")


@pytest.mark.parametrize("kind", ["swapped", "middle lost"])
def test_what_is_whole_ends_in_the_same_weights(
    kind: str, finished: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    folder = tmp_path / "partial"
    shutil.copytree(finished[0], folder)
    if kind == "swapped":
        (folder / LAYERS[0]).rename(folder / "x")
        (folder / LAYERS[1]).rename(folder / LAYERS[0])
        (folder / "x").rename(folder / LAYERS[1])
    else:
        (folder / LAYERS[0]).unlink()
    weights = run(folder, tmp_path / "config")
    assert all(torch.equal(weights[name], finished[1][name]) for name in weights)


INTERRUPTED = """
import sys
from tamp_modifier import cli
from tamp_modifier.pruning import resume

save = resume.Resume.save_layer
def interrupted(self, *arguments):
    save(self, *arguments)
    raise KeyboardInterrupt

resume.Resume.save_layer = interrupted
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    row = {"messages": [{"role": "user", "content": "what is red ?"}] + [
        {"role": "assistant", "content": "ring"}
    ]}  # fmt: skip
    data.write_text(json.dumps(row) + "\n")
    out = tmp_path / "out"
    command = ["prune", str(MODEL_FOLDER), "--data", str(data), "--output", str(out)]
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, *command], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 130
    last = done.stderr.splitlines()[-1]
    assert last.startswith("tamp: interrupted; the finished layers are kept in ")
    assert last.endswith(": run the same command to resume, or add --restart to start over")


def test_restart_removes_what_a_run_has_left_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="none of a run of tamp-modifier; it is not removed"):
        forget(tmp_path / "theirs")
    assert (tmp_path / "theirs" / "thesis.txt").exists()
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "run.json").write_text("{}")
    forget(tmp_path / "ours")
    forget(tmp_path / "never")
    assert not (tmp_path / "ours").exists()


def test_a_second_run_at_the_same_folder_is_refused(tmp_path: Path) -> None:
    with only_writer(tmp_path / "partial"):
        with pytest.raises(OSError, match="is writing it"):
            run(tmp_path / "partial", tmp_path / "config")
    run(tmp_path / "partial", tmp_path / "config")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config", "partial"]
