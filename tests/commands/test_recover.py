"""``tamp recover``: from a pruned model to a recovered one, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from tamp_modifier import cli
from tamp_modifier.checkpoint.marker import CONFIG_KEY
from tamp_modifier.report import PruningReport
from tests.data.files import asked, jsonl, picture
from tests.data.folders import write_model

pytestmark = pytest.mark.slow

QUICK = ("--samples", "8", "--learning-rate", "0.01", "--batch-size", "2", "--accumulation", "1")


def write_pruned(dense: Path, out: Path, data: Path) -> Path:
    arguments = ["prune", str(dense), "--data", str(data), "--output", str(out)]
    assert cli.main([*arguments, "--sparsity", "0.6", "--max-sparsity", "0.7"]) == 0
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model, a pruned one, and data with pictures."""
    folder = tmp_path_factory.mktemp("recover")
    for number in range(3):
        picture(folder / f"{number}.png", (60 + 20 * number, 50), 70 * number)
    rows = [asked(("image", f"{number % 3}.png"), question="what is it ?") for number in range(6)]
    data = jsonl(folder / "data.jsonl", rows)
    write_model("llava_next", folder / "dense")
    write_pruned(folder / "dense", folder / "pruned", data)
    return folder


def command(folder: Path, out: Path, *more: str, student: str = "pruned") -> list[str]:
    start = ["recover", str(folder / student), "--teacher", str(folder / "dense")]
    return [*start, "--data", str(folder / "data.jsonl"), "--output", str(out), *more]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert cli.main(arguments) == 1
    line = capsys.readouterr().err
    assert line.startswith("tamp: error: ") and line.count("\n") == 1, line
    return line


def test_the_recovered_model_has_the_same_zeros_a_marker_and_a_report(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert cli.main(command(folder, tmp_path / "out", *QUICK, "--json")) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["ended"] == "8 samples are over" and 8 <= summary["samples"] < 10
    before, after = weights(folder / "pruned"), weights(tmp_path / "out")
    assert before.keys() == after.keys()
    report = PruningReport.load(tmp_path / "out" / "tamp_report.json")
    pruned = sum(int((before[n] == 0).sum()) for n in before if n.endswith("proj.weight"))
    assert summary["zeros"] <= pruned
    for name, value in after.items():
        assert not value[before[name] == 0].any() or "layers" not in name
        if "vision" in name or "projector" in name or "embed" in name:
            assert torch.equal(value, before[name]), name
    assert report.recovery is not None and report.recovery.curve[0]["samples"] == 0
    assert report.recovery.settings["samples"] == 8 and report.reached_sparsity > 0.59
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config[CONFIG_KEY]["layout"] == "dense"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "# dense, pruned" in card and "## Recovery" in card and str(folder) not in card
    assert (tmp_path / "out" / "tamp_samples.json").is_file()
    assert not (tmp_path / "out.partial").exists()
    page = tmp_path / "page.html"
    assert cli.main(["report", str(tmp_path / "out"), "--html", str(page)]) == 0
    assert "<h2>Recovery</h2>" in page.read_text()


def test_a_dry_run_tells_memory_and_time_and_writes_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert cli.main(command(folder, tmp_path / "out", *QUICK, "--dry-run", "--json")) == 0
    costs = json.loads(capsys.readouterr().out)
    assert costs["peak memory"] > 1e7 and costs["minutes"] > 0 and costs["samples held out"] == 1
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_another_tool_needs_no_report(folder: Path, tmp_path: Path) -> None:
    import shutil

    foreign = tmp_path / "foreign"
    shutil.copytree(folder / "pruned", foreign)
    (foreign / "tamp_report.json").unlink()
    config = json.loads((foreign / "config.json").read_text())
    del config[CONFIG_KEY]
    (foreign / "config.json").write_text(json.dumps(config))
    assert cli.main(command(folder, tmp_path / "out", *QUICK, student=str(foreign))) == 0
    report = PruningReport.load(tmp_path / "out" / "tamp_report.json")
    assert report.recovery is not None and len(report.linears) == 14
    assert json.loads((tmp_path / "out" / "config.json").read_text())[CONFIG_KEY]


def test_what_does_not_fit_is_refused_before_any_work(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"

    def changed(name: str, change: Any) -> str:
        import shutil

        copy = tmp_path / name
        shutil.copytree(folder / "pruned", copy)
        config = json.loads((copy / "config.json").read_text())
        change(config)
        (copy / "config.json").write_text(json.dumps(config))
        return str(copy)

    smaller = changed("smaller", lambda config: config["text_config"].update(vocab_size=7))
    line = fails(capsys, *command(folder, out, *QUICK, student=smaller))
    assert (
        "vocab_size of" in line and "is 7" in line and "must be the model that was pruned" in line
    )
    quantized = changed(
        "quantized",
        lambda config: config.update(quantization_config={"quant_method": "compressed-tensors"}),
    )
    line = fails(capsys, *command(folder, out, *QUICK, student=quantized))
    assert "is quantized (compressed-tensors); give the model before quantization" in line
    assert "is student and teacher" in fails(capsys, *command(folder, out, student="dense"))
    assert "give one of minutes and samples" in fails(
        capsys, *command(folder, out, "--minutes", "1", "--samples", "3")
    )
    assert "train is 'all'" in fails(capsys, *command(folder, out, "--train", "all"))
    assert "give --output OUT" in fails(
        capsys, *(a for a in command(folder, out) if a not in ("--output", str(out)))
    )
    assert not out.exists() and not Path(f"{out}.partial").exists()


def test_an_unfinished_run_with_other_settings_is_not_mixed_in(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    partial = tmp_path / "out.partial"
    partial.mkdir()
    line = fails(capsys, *command(folder, tmp_path / "out", *QUICK))
    assert "is not of tamp recover" in line and partial.is_dir()
    (partial / "settings.json").write_text(json.dumps({"train": "norms"}))
    line = fails(capsys, *command(folder, tmp_path / "out", *QUICK))
    assert "holds a training with another" in line and "--restart forgets it" in line
    assert cli.main(command(folder, tmp_path / "out", *QUICK, "--restart")) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--rank 4", "--rank goes with --train lora"),
        ("--group-size 32", "--group-size goes with --quantized W4A16"),
        ("--quantized W8A8 --group-size 32", "--group-size goes with --quantized W4A16"),
        ("--quantized W9", "--quantized is 'W9', allowed are W8A8, W4A16"),
    ],
)
def test_an_option_without_effect_is_refused_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: str, message: str
) -> None:
    arguments = command(tmp_path, tmp_path / "out", *options.split())
    assert message in fails(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []
