"""``tamp eval --tasks``: lm-evaluation-harness, with tasks of our own and without a network.

The expected numbers come from log-likelihoods that are computed here, without the harness.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tamp_modifier import cli
from tamp_modifier.checkpoint.pack import pack_checkpoint
from tamp_modifier.demo.evaluation import load_model as load_demo_model
from tamp_modifier.demo.evaluation import load_processor
from tamp_modifier.report.card import RESULTS, write_card
from tests.data.files import asked, jsonl
from tests.data.folders import write_model
from tests.report.test_report import make_report

WORDS = ["cold", "small", "red"]
ROWS = [
    {"thing": "hot", "label": 0},
    {"thing": "big", "label": 1},
    {"thing": "apple", "label": 2},
    {"thing": "snow", "label": 0},
    {"thing": "cherry", "label": 2},
]
QUESTION = "<bos> <user> what is the opposite of {} ? <assistant>"

CHOICE = """
output_type: multiple_choice
doc_to_choice: ["cold", "small", "red"]
doc_to_target: label
metric_list:
  - metric: acc
  - metric: brier_score
    higher_is_better: false
"""
LIKELY = """
output_type: loglikelihood
doc_to_target: " {{ ['cold', 'small', 'red'][label] }}"
metric_list:
  - metric: perplexity
  - metric: acc
"""


def write_task(folder: Path, name: str, rows: list[dict[str, Any]], how: str) -> None:
    """A task of the harness in FOLDER/tasks, with its questions beside."""
    data = jsonl(folder / f"{name}.jsonl", rows)
    (folder / "tasks").mkdir(exist_ok=True)
    question = QUESTION.format("{{thing}}")
    (folder / "tasks" / f"{name}.yaml").write_text(
        f"task: {name}\ndataset_path: json\ntest_split: test\nfewshot_split: test\n"
        f"dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {folder / 'cache'}}}\n"
        f'doc_to_text: "{question}"\n{how}'
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny model with a card, and three tasks."""
    write_model("llama", tmp_path / "model")
    write_card(tmp_path / "model", make_report())
    write_task(tmp_path, "own_choice", ROWS, CHOICE)
    write_task(tmp_path, "own_likely", ROWS, LIKELY)
    write_task(tmp_path, "own_pair", ROWS[:2], CHOICE)
    return tmp_path


def log_likelihood(model: Any, tokenizer: Any, before: str, answer: str) -> float:
    """Sum over the tokens of the answer, in nats."""
    start = len(tokenizer(before)["input_ids"])
    ids = tokenizer(before + answer)["input_ids"]
    with torch.no_grad():
        scores = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(float(scores[i - 1, ids[i]]) for i in range(start, len(ids)))


def expected(model: Any, tokenizer: Any, contexts: list[str], labels: list[int]) -> dict[str, Any]:
    """Accuracy and Brier score of the choice among `WORDS`, and perplexity of the right word."""
    rows = [
        torch.tensor([log_likelihood(model, tokenizer, text, f" {word}") for word in WORDS])
        for text in contexts
    ]
    wanted = torch.nn.functional.one_hot(torch.tensor(labels), len(WORDS))
    shares = torch.stack(rows).softmax(-1)
    right = [float(row.argmax() == label) for row, label in zip(rows, labels, strict=True)]
    nll = -sum(float(row[label]) for row, label in zip(rows, labels, strict=True)) / len(rows)
    return {
        "acc": sum(right) / len(right),
        "brier_score": float((shares - wanted).pow(2).sum(-1).mean()),
        "perplexity": math.exp(nll),
    }


def scored(
    capsys: pytest.CaptureFixture[str], folder: Path, model: Path, tasks: str, *more: str
) -> dict[str, Any]:
    """What the command prints as JSON."""
    capsys.readouterr()
    command = ["eval", str(model), "--tasks", *tasks.split(), "--include-path"]
    assert cli.main([*command, str(folder / "tasks"), *more, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_scores_are_those_of_the_log_likelihoods(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = folder / "model"
    found = scored(capsys, folder, model, "own_choice own_likely", "--batch-size", "4")
    loaded = AutoModelForCausalLM.from_pretrained(model).eval()
    contexts = [QUESTION.format(row["thing"]) for row in ROWS]
    labels = [row["label"] for row in ROWS]
    wanted = expected(loaded, AutoTokenizer.from_pretrained(model), contexts, labels)
    choice, likely = found["tasks"]["own_choice"], found["tasks"]["own_likely"]
    assert choice["samples"] == likely["samples"] == len(ROWS) and choice["fewshot"] == 0
    metrics = choice["metrics"]
    assert metrics["acc"]["value"] == pytest.approx(wanted["acc"])
    assert metrics["brier_score"]["value"] == pytest.approx(wanted["brier_score"], rel=1e-5)
    perplexity = likely["metrics"]["perplexity"]["value"]
    assert perplexity == pytest.approx(wanted["perplexity"], rel=1e-5)
    share = wanted["acc"]
    error = math.sqrt(share * (1 - share) / (len(ROWS) - 1))
    assert metrics["acc"]["stderr"] == pytest.approx(error)
    assert found["warnings"] == [] and "reference" not in found


@pytest.mark.slow
def test_the_examples_before_a_question_are_the_same_for_both_models(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = folder / "model"
    more = ["--num-fewshot", "1", "--reference", str(model)]
    found = scored(capsys, folder, model, "own_choice own_pair", *more)
    for task in found["tasks"].values():
        assert task["fewshot"] == 1
        for metric in task["metrics"].values():
            assert metric["reference"] == metric["value"]
    # With two questions the example of each is the other one.
    shown = [f"{QUESTION.format(row['thing'])} {WORDS[row['label']]}\n\n" for row in ROWS[:2]]
    contexts = [shown[1 - i] + QUESTION.format(ROWS[i]["thing"]) for i in range(2)]
    loaded = AutoModelForCausalLM.from_pretrained(model).eval()
    wanted = expected(loaded, AutoTokenizer.from_pretrained(model), contexts, [0, 1])
    metrics = found["tasks"]["own_pair"]["metrics"]
    assert metrics["brier_score"]["value"] == pytest.approx(wanted["brier_score"], rel=1e-5)
    assert metrics["acc"]["value"] == wanted["acc"]


@pytest.mark.slow
def test_a_packed_model_that_sees_answers_with_its_language_model(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pruned = load_demo_model(dtype=torch.bfloat16)
    for name, weight in pruned.named_parameters():
        if "language_model" in name and "proj" in name:
            weight.data[:, ::2] = 0
    pruned.save_pretrained(folder / "dense")
    load_processor().save_pretrained(folder / "dense")
    pack_checkpoint(folder / "dense", folder / "packed")
    more = ["--dtype", "float32", "--reference", str(folder / "dense"), "--batch-size", "3"]
    found = scored(capsys, folder, folder / "packed", "own_choice own_likely", *more)
    contexts = [QUESTION.format(row["thing"]) for row in ROWS]
    labels = [row["label"] for row in ROWS]
    wanted = expected(pruned.float(), load_processor().tokenizer, contexts, labels)
    choice, likely = (found["tasks"][name]["metrics"] for name in ("own_choice", "own_likely"))
    assert choice["acc"]["value"] == pytest.approx(wanted["acc"])
    assert choice["acc"]["retention"] == (1.0 if wanted["acc"] else None)
    assert choice["brier_score"]["value"] == pytest.approx(wanted["brier_score"], rel=1e-4)
    assert choice["brier_score"]["reference"] == choice["brier_score"]["value"]
    assert choice["brier_score"]["retention"] is None  # less is better
    assert likely["perplexity"]["value"] == pytest.approx(wanted["perplexity"], rel=1e-4)


@pytest.mark.slow
def test_both_kinds_of_results_go_into_the_card_and_new_ones_replace_old_ones(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = folder / "model" / "README.md"
    before = card.read_text()
    data = jsonl(folder / "data.jsonl", [asked(question="what is red ?", answer="cat")] * 2)
    questions = ["eval", str(folder / "model"), "--data", str(data), "--card"]
    assert cli.main(questions) == 0
    one = card.read_text()
    assert f"## {RESULTS['data']}\n\n" in one and "from `data.jsonl`" in one
    assert "| task | questions | right | NLL |" in one and "| `text` | 2 | " in one
    found = scored(capsys, folder, folder / "model", "own_choice", "--card", "--samples", "2")
    both = card.read_text()
    assert f"lm-evaluation-harness {found['lm_eval']}" in both
    value = found["tasks"]["own_choice"]["metrics"]["brier_score"]["value"]
    assert f"| `own_choice` | brier_score | {value:.4g}" in both and " | 2 | 0 |\n" in both
    assert one.partition("## Answers")[2].partition("<!-- tamp-modifier: storage")[0] in both
    reference = ["--reference", str(folder / "model"), "--tasks", "own_choice", "--include-path"]
    command = ["eval", str(folder / "model"), *reference, str(folder / "tasks"), "--card"]
    assert cli.main(command) == 0
    assert "retained" in capsys.readouterr().out
    assert cli.main(questions) == 0
    renewed = card.read_text()
    assert "| task | metric | value | reference | retained | asked | shots |" in renewed
    assert all(renewed.count(f"## {heading}\n") == 1 for heading in RESULTS.values())
    assert renewed.index("## Answers") < renewed.index("## Tasks") < renewed.index("## Use")
    start, end = before.split("<!-- tamp-modifier: storage -->")
    assert renewed.startswith(start) and renewed.endswith(end)
    assert str(folder) not in renewed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "message"),
    [
        (f"{CHOICE}unsafe_code: true\n", "task own_choice runs programs that the model writes"),
        (f"{CHOICE}doc_to_image: [thing]\n", "task own_choice asks about pictures or sounds"),
        (f"{CHOICE}dataset_name: absent\n", "own_choice: the tasks cannot be loaded: "),
    ],
)
def test_tasks_that_cannot_be_asked_are_refused_before_the_model_is_loaded(
    how: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_task(folder, "own_choice", ROWS, how)
    (folder / "model" / "model.safetensors").write_bytes(b"")
    if "absent" in how:
        (folder / "own_choice.jsonl").unlink()
    command = ["eval", str(folder / "model"), "--tasks", "own_choice", "--include-path"]
    capsys.readouterr()
    assert cli.main([*command, str(folder / "tasks")]) == 1
    line = capsys.readouterr().err
    assert line.startswith(f"tamp: error: {message}") and line.count("\n") == 1


@pytest.mark.slow
def test_an_unknown_task_is_named_with_the_ones_that_are_near(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "model" / "model.safetensors").write_bytes(b"")
    command = ["eval", str(folder / "model"), "--tasks", "own_choice", "hellaswagg"]
    capsys.readouterr()
    assert cli.main([*command, "--include-path", str(folder / "tasks")]) == 1
    line = capsys.readouterr().err
    assert "lm-evaluation-harness knows no task 'hellaswagg'; there is hellaswag" in line
    assert line.count("\n") == 1


def test_logits_that_are_not_finite_are_an_error(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    model.save_pretrained(folder / "model")
    command = ["eval", str(folder / "model"), "--tasks", "own_choice", "--include-path"]
    capsys.readouterr()
    assert cli.main([*command, str(folder / "tasks")]) == 1
    assert "task own_choice: the logits of the model are not finite" in capsys.readouterr().err


def test_examples_that_a_task_does_not_take_are_told(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_task(folder, "own_choice", ROWS, f"{CHOICE}num_fewshot: 0\n")
    found = scored(capsys, folder, folder / "model", "own_choice", "--num-fewshot", "2")
    assert found["tasks"]["own_choice"]["fewshot"] == 0
    assert found["warnings"] == ["task own_choice takes no examples, so --num-fewshot is not used"]


def test_without_the_harness_the_error_names_the_extra(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert cli.main(["eval", str(folder / "model"), "--tasks", "mmlu"]) == 1
    error = capsys.readouterr().err
    assert 'pip install "tamp-modifier[eval]"' in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--data d.jsonl --include-path .", "--include-path goes with --tasks"),
        ("--data d.jsonl --num-fewshot 0", "--num-fewshot goes with --tasks"),
        ("--tasks mmlu --seed 0", "--seed goes with --data"),
        ("--tasks mmlu --frames 4", "--frames goes with --data"),
        ("--tasks mmlu --skip-bad 1", "--skip-bad goes with --data"),
        ("--tasks mmlu --card", "empty has no model card of tamp-modifier (a README.md)"),
        ("--data d.jsonl --card", "empty has no model card of tamp-modifier (a README.md)"),
        ("--tasks mmlu", "empty: there is no config.json, so no model, in it"),
    ],
)
def test_options_are_checked_before_anything_is_read(
    options: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert cli.main(["eval", str(tmp_path / "empty"), *options.split()]) == 1
    line = capsys.readouterr().err
    assert message in line and line.count("\n") == 1


def test_the_folder_of_tasks_must_exist(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(folder / "tasks")
    command = ["eval", str(folder / "model"), "--tasks", "own_choice", "--include-path"]
    assert cli.main([*command, str(folder / "tasks")]) == 1
    line = capsys.readouterr().err
    assert line == f"tamp: error: {folder / 'tasks'}: --include-path must be a folder with tasks\n"


def test_data_and_tasks_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    for options in ("--data d.jsonl --tasks mmlu", ""):
        with pytest.raises(SystemExit) as stop:
            cli.main(["eval", "model", *options.split()])
        assert stop.value.code == 2
        assert "--tasks" in capsys.readouterr().err
