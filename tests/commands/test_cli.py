"""The tamp command: arguments, exit status, one clear line on failure."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tamp_modifier import cli
from tamp_modifier.checkpoint.marker import read_marker
from tamp_modifier.checkpoint.pack import read_config
from tamp_modifier.demo.methods import METHODS
from tamp_modifier.demo.results import next_steps
from tamp_modifier.report import PruningReport
from tests.report.test_report import make_report


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tamp_modifier.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=cwd)


def test_help_lists_the_commands_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from tamp_modifier import cli\n"
        "try:\n    cli.main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'transformers', 'llmcompressor', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "demo" in done.stdout and "report" in done.stdout


@pytest.mark.parametrize("command", ["demo", "report"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0
    assert f"usage: tamp {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["prun"], "invalid choice: 'prun'"),
        (["report"], "REPORT.json"),
        (["demo", "--samples", "0"], "'0' is not a positive whole number"),
        (["demo", "--items", "many"], "'many' is not a positive whole number"),
    ],
)
def test_wrong_arguments_end_with_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_report_prints_the_table_and_draws_figures(tmp_path: Path) -> None:
    path = make_report().save(tmp_path / "report.json")
    done = run("report", str(path), "--figures", "figures", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "total" in done.stdout and "27 text, 60 image" in done.stdout
    assert "wrote figures/sparsity.png" in done.stdout
    assert (tmp_path / "figures" / "selected_tokens.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda path: None, "No such file or directory"),
        (lambda path: path.mkdir(), "there is no tamp_report.json in it"),
        (lambda path: path.write_text("{}"), "is not a pruning report of tamp-modifier"),
        (lambda path: path.write_text("hello"), "is not a JSON file"),
    ],
)
def test_a_bad_report_is_one_line_and_status_1(tmp_path: Path, prepare, message: str) -> None:
    prepare(tmp_path / "report.json")
    done = run("report", "report.json", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("tamp: error: report.json") and message in done.stderr


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--figures", "report.json"), "--figures must name a folder, report.json is a file"),
        (("--html", "report.json"), "--html must name a file that ends with .html"),
        (("--html", "a.html"), "--html must name a file, a.html is a folder"),
    ],
)
def test_a_bad_place_is_refused_before_anything_is_printed(
    tmp_path: Path, option: tuple[str, str], message: str
) -> None:
    make_report().save(tmp_path / "report.json")
    (tmp_path / "a.html").mkdir()
    before = (tmp_path / "report.json").read_bytes()
    done = run("report", "report.json", *option, cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and message in done.stderr
    assert (tmp_path / "report.json").read_bytes() == before


def test_the_traceback_is_shown_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMP_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        cli.main(["report", str(tmp_path / "absent.json")])


@pytest.mark.slow
def test_demo_prunes_compares_and_draws(tmp_path: Path) -> None:
    given = ("--samples", "4", "--items", "1", "--minutes", "0.05")
    done = run("demo", *given, "--output", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    data = json.loads((tmp_path / "out" / "demo.json").read_text())
    assert [run["label"] for run in data["runs"]] == [
        "",
        *(label for label in ("50 %", "60 %", "70 %", "2:4") for _ in METHODS),
        "50 % + W4A16",
        "70 % + recovery",
    ]
    assert [run["method"] for run in data["runs"]] == ["dense", *METHODS * 4, "preset", "preset"]
    small, recovered = data["runs"][-2:]
    for result in [*data["runs"][:-2], recovered]:
        # All prune the same Linears; Wanda rounds down to whole columns, the others to nearest.
        precision = 0.005 if result["method"] == "Wanda" else 0.001
        assert result["reached"] == pytest.approx(result["requested"], abs=precision)
        assert 0 <= result["scores"]["picture"] <= 1
        assert f"{100 * result['reached']:.1f}" in done.stdout
    for name in ("retention.png", "das_sparsity.png"):
        assert (tmp_path / "out" / name).stat().st_size > 10_000
    weights = saved(tmp_path / "out" / "best-50", "dense")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    pruned = [w for name, w in weights.items() if "language_model" in name and "_proj." in name]
    zeros = sum(int((weight == 0).sum()) for weight in pruned)
    assert zeros / sum(weight.numel() for weight in pruned) == pytest.approx(0.5, abs=0.001)
    report = PruningReport.load(tmp_path / "out" / "tamp-60.json")
    assert report.reached_sparsity == pytest.approx(0.6, abs=0.001)
    assert report.samples == 4 and report.token_types
    assert report.run["model"] == "demo model" and "4 drawn pictures" in report.run["data"]
    assert (tmp_path / "out" / "best-50" / "README.md").read_text().count("`demo model`") == 1
    packed = saved(tmp_path / "out" / "best-50-w4a16", "packed")
    held = [w for name, w in packed.items() if "language_model" in name and "_proj." in name]
    assert small["size"] == sum(tensor.nbytes for tensor in held)
    assert 2.8 < 16 * small["size"] / data["runs"][0]["size"] < 3.5  # bits a weight
    saved(tmp_path / "out" / "best-70-recovered", "dense")
    trained = PruningReport.load(tmp_path / "out" / "best-70-recovered" / "tamp_report.json")
    assert (
        trained.recovery is not None and trained.recovery.best < trained.recovery.curve[0]["loss"]
    )
    assert "make ask" in done.stdout and "tamp prune MODEL" in done.stdout
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith("tmp")]


def saved(folder: Path, layout: str) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint that the demo wrote, with all that belongs to it."""
    marker = read_marker(read_config(folder))
    assert marker is not None and marker["layout"] == layout
    for name in ("processor_config.json", "tamp_report.json", "README.md"):
        assert (folder / name).is_file()
    return load_file(folder / "model.safetensors")


def test_the_commands_that_the_demo_ends_with_are_known() -> None:
    text = next_steps(Path("output/demo"))
    lines = [line.split() for line in text.splitlines() if line.startswith("  tamp ")]
    assert [line[1] for line in lines] == ["inspect", "report", "prune", "eval"]
    for line in lines:
        cli.build_parser().parse_args(line[1:])


def test_demo_without_its_model_is_one_clear_error(tmp_path: Path) -> None:
    from tamp_modifier.demo.run import run_demo

    with pytest.raises(FileNotFoundError, match="no model here, the demo needs one: .*absent"):
        run_demo(tmp_path / "out", folder=tmp_path / "absent")
    assert list(tmp_path.iterdir()) == []
