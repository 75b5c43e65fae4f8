"""``tamp eval`` against the demo's own scoring, which goes another way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tamp_modifier import cli
from tamp_modifier.data import Collator, Encoded
from tamp_modifier.demo.evaluation import (
    MODEL_FOLDER,
    evaluate,
    evaluation_samples,
    load_model,
    load_processor,
)
from tamp_modifier.demo.pictures import draw
from tamp_modifier.workflows.evaluate import TaskScore, retention, score_answers
from tests.data.files import asked, jsonl

ITEMS = 6


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("questions")
    rows = []
    for task in ("what", "opposite"):
        for number, sample in enumerate(evaluation_samples(task, ITEMS)):
            media = []
            if sample.scene is not None:
                draw(sample.scene).save(folder / f"{number}.png")
                media = [("image", f"{number}.png")]
            question = sample.question
            row = asked(*media, question=question.question, answer=question.answer)
            rows.append({"task": task, **row})
    return jsonl(folder / "data.jsonl", rows)


def test_scores_are_those_of_the_demo(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = load_model()
    with torch.no_grad():  # so that some answers are wrong
        for layer in model.model.language_model.layers[:2]:
            layer.mlp.down_proj.weight.mul_(0.2)
    expected = evaluate(model, load_processor(), ITEMS, tasks=("what", "opposite"))
    assert 0 < expected.tasks["what"] + expected.tasks["opposite"] < 2
    folder = data.parent / "model"
    model.save_pretrained(folder)
    load_processor().save_pretrained(folder)
    arguments = ["eval", str(folder), "--data", str(data), "--reference", str(MODEL_FOLDER)]
    more = ["--dtype", "float32", "--batch-size", "5", "--json"]
    assert cli.main([*arguments, *more]) == 0
    found = json.loads(capsys.readouterr().out)
    dense = evaluate(load_model(), load_processor(), ITEMS, tasks=("what", "opposite"))
    for task in ("what", "opposite"):
        row = found["tasks"][task]
        assert row["samples"] == ITEMS
        assert row["accuracy"] == pytest.approx(expected.tasks[task])
        assert row["nll"] == pytest.approx(expected.nll[task], abs=1e-4)
        assert row["reference_accuracy"] == pytest.approx(dense.tasks[task])
        kept = expected.tasks[task] / dense.tasks[task]
        assert row["retention"] == pytest.approx(kept)
    mean = (found["tasks"]["what"]["nll"] + found["tasks"]["opposite"]["nll"]) / 2
    assert found["mean"]["nll"] == pytest.approx(mean)


def test_the_table_has_a_row_a_task(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", str(MODEL_FOLDER), "--data", str(data), "--samples", "3"]) == 0
    text = capsys.readouterr().out
    assert "task" in text and "mean" in text and "NLL" in text


class Fixed(torch.nn.Module):
    """Gives the logits that it was made with."""

    device = torch.device("cpu")

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, **_: Any) -> Any:
        return self


def test_what_follows_the_end_of_an_answer_does_not_count() -> None:
    # Prompt 5 6, answer 7 2 (its end) and a 9 of the template.
    sample = Encoded("data:1", {"input_ids": torch.tensor([[5, 6, 7, 2, 9]])}, 2, "task")
    logits = torch.zeros(1, 5, 10)
    logits[0, 1, 7] = logits[0, 2, 2] = 3.0
    logits[0, 3, 1] = 3.0
    tokenizer: Any = type("T", (), {"padding_side": "right", "pad_token_id": 0})
    ended = score_answers(Fixed(logits), [sample], Collator(tokenizer), ends={2})["task"]
    whole = score_answers(Fixed(logits), [sample], Collator(tokenizer))["task"]
    assert ended.accuracy == 1 and whole.accuracy == 0
    one = -torch.tensor([3.0] + [0.0] * 9).log_softmax(0)[0]
    assert ended.nll == pytest.approx(float(one), abs=1e-6)
    logits[0, 1, 7] = torch.nan
    with pytest.raises(ValueError, match="data:1: the logits of the model are not finite"):
        score_answers(Fixed(logits), [sample], Collator(tokenizer), ends={2})


def test_nothing_can_be_kept_of_nothing() -> None:
    assert retention(TaskScore(4, 0.5, 1.0), TaskScore(4, 0.0, 1.0)) is None
    assert retention(TaskScore(4, 0.5, 1.0), TaskScore(4, 1.0, 1.0)) == 0.5


def test_plain_text_has_nothing_to_score(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = jsonl(tmp_path / "data.jsonl", [asked(), {"text": "words"}])
    capsys.readouterr()
    assert cli.main(["eval", str(MODEL_FOLDER), "--data", str(data)]) == 1
    line = capsys.readouterr().err
    assert line == f"tamp: error: {data}:2: a plain text has no answer to score\n"


def test_bad_questions_are_skipped_and_listed_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = jsonl(tmp_path / "data.jsonl", [asked(), "{", asked(("image", "absent.png"))])
    command = ["eval", str(MODEL_FOLDER), "--data", str(path), "--skip-bad", "2"]
    capsys.readouterr()
    assert cli.main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["mean"]["samples"] == 1
    assert [line.split(": ")[1] for line in found["warnings"]] == [f"{path}:2", f"{path}:3"]
    assert cli.main(command) == 0
    assert capsys.readouterr().out.count("warning: skipped: ") == 2
