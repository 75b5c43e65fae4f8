"""``tamp prune``: from data to a saved model, through kills, full disks and wrong arguments."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tamp_modifier import cli
from tamp_modifier.demo.evaluation import MODEL_FOLDER
from tamp_modifier.report import PruningReport
from tamp_modifier.workflows.models import load_config, load_model
from tests.data.files import asked, jsonl, picture, sound
from tests.data.folders import write_model

MIB = 1 << 20


def command(out: Path | str, data: Path, *more: str, model: Path = MODEL_FOLDER) -> list[str]:
    return ["prune", str(model), "--data", str(data), "--output", str(out), *more]


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a command that must fail."""
    capsys.readouterr()  # what came before
    assert cli.main(arguments) == 1
    line = capsys.readouterr().err
    assert line.startswith("tamp: error: ") and line.count("\n") == 1, line
    return line


def same(one: Path, other: Path) -> bool:
    """Whether two checkpoints have the same bits."""
    return (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for number in range(3):
        picture(folder / f"{number}.png", (60 + 20 * number, 50), 70 * number)
    rows = [asked(("image", f"{number}.png")) for number in range(3)]
    return jsonl(folder / "data.jsonl", rows)


@pytest.fixture(scope="module")
def pruned(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, pruned without any trouble."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert cli.main(command(out, data)) == 0
    return out


def test_the_folder_holds_the_pruned_model_its_processor_and_its_report(pruned: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    report = PruningReport.load(pruned / "tamp_report.json")
    assert report.reached_sparsity == pytest.approx(0.5, abs=1e-3)
    assert report.samples == 3 and report.tokens["image"] == 3 * 144
    model = AutoModelForImageTextToText.from_pretrained(pruned)
    zeros = total = 0
    for name, linear in report.linears.items():
        weight = model.get_submodule(name).weight
        assert float((weight == 0).double().mean()) == pytest.approx(linear.reached, abs=1e-9)
        zeros, total = zeros + int((weight == 0).sum()), total + weight.numel()
    assert zeros / total == pytest.approx(report.reached_sparsity, abs=1e-9)
    assert AutoProcessor.from_pretrained(pruned).chat_template
    assert len(report.attention) == 6
    card = (pruned / "README.md").read_text()
    assert "3 samples with " in card and "from `data.jsonl`" in card
    assert str(MODEL_FOLDER) not in card and str(pruned.parent) not in card
    for shares in report.attention.values():
        assert set(shares) == {"text", "image"}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-2)  # bf16 attention
    samples = json.loads((pruned / "tamp_samples.json").read_text())["samples"]
    assert [len(s["media"]) for s in samples] == [1, 1, 1]
    assert all(not Path(medium["path"]).is_absolute() for s in samples for medium in s["media"])
    assert all("/" not in sample["name"] for sample in samples)
    assert samples[0]["media"][0]["grid"] == [12, 12] and samples[0]["media"][0]["first"] == 2
    assert {path.name for path in pruned.parent.iterdir()} == {"out"}


KILLS = """
import os, signal, sys
from tamp_modifier import cli
from tamp_modifier.pruning import resume
from transformers import LlavaForConditionalGeneration as Model

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

place = sys.argv.pop(1)
if place == "in the third layer":
    save_file, count = resume.save_file, []
    def save_some(tensors, path, **more):
        save_file(tensors, path, **more)
        count.append(path)
        if len(count) == 3:
            path.write_bytes(path.read_bytes()[:1000])  # a file that was being written
            kill()
    resume.save_file = save_some
else:
    save = Model.save_pretrained
    def save_and_die(self, folder, **more):
        save(self, folder, **more)
        kill()
    Model.save_pretrained = save_and_die
sys.exit(cli.main(sys.argv[1:]))
"""


def refuse(*_: Any) -> None:
    raise AssertionError("nothing may be done anew")


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bits(
    data: Path, pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    arguments = command(out, data)

    def killed(place: str) -> None:
        done = subprocess.run(
            [sys.executable, "-c", KILLS, place, *arguments],
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == -signal.SIGKILL, done.stderr

    killed("in the third layer")
    partial = tmp_path / "out.partial"
    assert sorted(f.name for f in partial.glob("0*")) == ["00000.safetensors", "00001.safetensors"]
    assert len(list(partial.glob(".00002.safetensors.*.part"))) == 1
    killed("while saving")
    assert not out.exists() and (tmp_path / "out.tmp").exists()
    assert len(list(partial.glob("*.safetensors"))) == 6

    monkeypatch.setattr("tamp_modifier.pruning.pruner.Pruner.prune", refuse)
    assert cli.main(arguments) == 0
    assert same(out, pruned)
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    ours, theirs = (PruningReport.load(f / "tamp_report.json") for f in (out, pruned))
    assert ours.linears == theirs.linears and ours.token_types == theirs.token_types
    assert ours.attention == theirs.attention


@contextmanager
def no_larger_files(size: int) -> Iterator[None]:
    """No file of this process may become larger, as on a disk that gets full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_nothing_half_written_and_the_layers_for_the_next_run(
    data: Path, pruned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with no_larger_files(MIB):
        line = fails(capsys, *command(out, data))
    assert "saving failed and nothing was left behind: " in line and "File too large" in line
    assert f"the pruned layers are kept in {out}.partial" in line
    assert {path.name for path in tmp_path.iterdir()} == {"out.partial"}

    line = fails(capsys, *command(out, data, "--sparsity", "0.6"))
    assert "out.partial is of another run: it has sparsity 0.5, this run 0.6. Start over" in line
    line = fails(capsys, *command(out, data, "--samples", "2"))
    assert "its calibration data had other values" in line
    line = fails(capsys, *command(out, data, "--dtype", "float16"))
    assert ", this run in float16; --dtype sets it" in line

    assert cli.main(command(out, data)) == 0
    assert same(out, pruned)
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def test_restart_forgets_what_was_finished(data: Path, tmp_path: Path) -> None:
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "run.json").write_text("{}")
    (partial / "dense_pass.json").write_text("{}")
    model = write_model("llama", tmp_path / "model")
    plain = jsonl(tmp_path / "data.jsonl", [{"text": "what is 3 plus 4 ?"}] * 2)
    assert cli.main(command(tmp_path / "out", plain, model=model)) == 1
    assert cli.main(command(tmp_path / "out", plain, "--restart", model=model)) == 0
    assert not partial.exists()


def test_layers_in_a_folder_of_something_else_are_not_touched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_model("llama", tmp_path / "model")
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "thesis.txt").write_text("mine")
    plain = jsonl(tmp_path / "data.jsonl", [{"text": "what is 3 plus 4 ?"}])
    line = fails(capsys, *command(tmp_path / "out", plain, model=model))
    assert "has files in it, but none of a run of tamp-modifier" in line
    assert (tmp_path / "out.partial" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("llava_next", ["--batch-size", "2", "--mask-structure", "2:4"]),
        ("gemma3", ["--batch-size", "3", "--allocation", "uniform", "--one-pass"]),
        ("qwen2_audio", ["--batch-size", "3", "--score", "sparsegpt", "--sparsity", "0.4"]),
        ("llama", ["--preset", "best", "--ignore", "re:.*down_proj"]),
    ],
)
def test_any_model_with_a_processor_is_pruned(
    name: str, more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_model(name, tmp_path / "model")
    rows: list[Any] = [{"text": "what is 3 plus 4 ?"}, asked()]
    if name == "qwen2_audio":
        for number in range(2):
            sound(tmp_path / f"{number}.wav", 0.3 + 0.3 * number)
            rows.append(asked(("audio", f"{number}.wav")))
    elif name != "llama":
        for number, size in enumerate([(64, 30), (30, 64)]):
            picture(tmp_path / f"{number}.png", size)
            rows.append(asked(("image", f"{number}.png")))
    out = tmp_path / "out"
    arguments = command(out, jsonl(tmp_path / "data.jsonl", rows), "--json", *more, model=model)
    assert cli.main(arguments) == 0
    summary = json.loads(capsys.readouterr().out)
    wanted = 0.4 if "0.4" in more else 0.5
    assert summary["reached_sparsity"] == pytest.approx(wanted, abs=0.02)
    assert summary["samples"] == len(rows) and summary["output"] == str(out)
    report = PruningReport.load(out / "tamp_report.json")
    stored = load_model(str(out), load_config(str(out)))
    for linear, entry in report.linears.items():
        weight = stored.get_submodule(linear).weight
        assert float((weight == 0).double().mean()) == pytest.approx(entry.reached, abs=1e-9)


def test_a_recipe_takes_the_place_of_the_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_model("llama", tmp_path / "model")
    plain = jsonl(tmp_path / "data.jsonl", [{"text": "what is 3 plus 4 ?"}] * 2)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "pruning_stage:\n  pruning_modifiers:\n    TAMPModifier:\n      sparsity: 0.25\n"
    )
    arguments = command(tmp_path / "out", plain, "--recipe", str(recipe), model=model)
    line = fails(capsys, *arguments, "--sparsity", "0.5")
    assert "--recipe has fields of its own, leave out --sparsity" in line
    assert cli.main(arguments) == 0
    report = PruningReport.load(tmp_path / "out" / "tamp_report.json")
    assert report.reached_sparsity == pytest.approx(0.25, abs=0.02)
    assert "report_path: tamp_report.json" in (tmp_path / "out" / "recipe.yaml").read_text()
    assert "partial" not in (tmp_path / "out" / "recipe.yaml").read_text()
    # The recipe that was saved with the model says where its report went.
    capsys.readouterr()
    saved = str(tmp_path / "out" / "recipe.yaml")
    assert cli.main(command(tmp_path / "again", plain, "--recipe", saved, model=model)) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert told.count("report_path is ignored, all goes to the output folder") == 1
    again = PruningReport.load(tmp_path / "again" / "tamp_report.json")
    assert again.linears == report.linears


def test_a_dry_run_tells_what_would_be_done_and_writes_nothing(
    data: Path, pruned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert cli.main(command(out, data, "--dry-run", "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    report = PruningReport.load(pruned / "tamp_report.json")
    assert found["tokens"] == report.tokens and found["samples"] == report.samples
    assert found["weights"] == sum(linear.numel for linear in report.linears.values())
    assert sum(kind["linears"] for kind in found["linears"].values()) == len(report.linears)
    stored = (MODEL_FOLDER / "model.safetensors").stat().st_size
    size = {"bfloat16": 1, "float32": 2}[found["dtype"]]  # where bfloat16 is emulated
    assert found["estimate"]["weights"] == pytest.approx(size * stored, rel=0.02)
    assert found["estimate"]["seconds"] > 0
    assert cli.main(command(out, data, "--dry-run", "--one-pass")) == 0
    text = capsys.readouterr().out
    assert "down_proj" in text and "nothing was written" in text
    assert list(tmp_path.iterdir()) == []


def test_bad_rows_are_skipped_and_listed_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "bad.png").write_text("no picture" * 9)
    row = {"image": "a.png", "question": "what animal is there ?", "answer": "cat"}
    rows = [row, {**row, "hint": "x"}, {**row, "image": "bad.png"}, row]
    path = jsonl(tmp_path / "data.jsonl", rows)
    plan = ["prune", str(MODEL_FOLDER), "--data", str(path), "--dry-run", "--json"]
    capsys.readouterr()
    assert cli.main([*plan, "--skip-bad", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["samples"] == 2 and found["tokens"]["image"] == 2 * 144
    unread, broken = found["warnings"]
    assert unread.startswith(f"skipped: {path}:2: nothing reads the key 'hint'")
    assert broken.startswith(f"skipped: {path}:3: the picture {tmp_path / 'bad.png'} cannot be")
    line = fails(capsys, *plan, "--skip-bad", "1")
    assert "data.jsonl:3: the picture" in line and "(1 bad rows were skipped before)" in line
    assert "data.jsonl:2: nothing reads the key 'hint'" in fails(capsys, *plan)
    only = jsonl(tmp_path / "only.jsonl", [{**row, "image": "bad.png"}])
    line = fails(capsys, "prune", str(MODEL_FOLDER), "--data", str(only), *plan[4:], "--skip-bad=9")
    assert "no sample is left, all were skipped; the first: " in line


@pytest.mark.slow
def test_own_answers_replace_those_of_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    question = "what is 3 plus 4 ?"
    right = jsonl(tmp_path / "right.jsonl", [asked(question=question, answer="7")])
    none = [{"messages": [{"role": "user", "content": question}]}]
    asked_only = jsonl(tmp_path / "none.jsonl", none)
    own = ("--answers", "own", "--answer-tokens", "4")
    assert cli.main(command(tmp_path / "a", right)) == 0
    assert cli.main(command(tmp_path / "b", asked_only, *own)) == 0
    assert same(tmp_path / "a", tmp_path / "b")
    samples = json.loads((tmp_path / "b" / "tamp_samples.json").read_text())
    assert samples["answers"] == {"tokens": 4, "temperature": 0.0, "seed": 0}
    (file,) = (tmp_path / "cache" / "tamp-modifier" / "answers").iterdir()
    monkeypatch.setattr("tamp_modifier.workflows.answers.load_to_run", refuse)
    assert cli.main(command(tmp_path / "again", asked_only, *own)) == 0, "all answers are kept"
    assert json.loads(file.read_text())["answer"] == "7"
    assert cli.main(["prune", str(MODEL_FOLDER), "--data", str(asked_only), "--dry-run", *own]) == 0
    assert "no answer" in fails(capsys, *command(tmp_path / "c", asked_only))
    for option in ("--answer-tokens", "--temperature"):
        line = fails(capsys, *command(tmp_path / "c", right, option, "1"))
        assert f"{option} goes with --answers own" in line
