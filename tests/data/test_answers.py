"""Answers that the model gives itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tamp_modifier.data import (
    Answering,
    DataError,
    Encoder,
    own_answers,
    read_conversations,
)
from tamp_modifier.tokens import modality_token_ids
from tests.data.files import asked, jsonl, picture


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """With a right answer, with a wrong one, and with none."""
    folder = tmp_path_factory.mktemp("questions")
    picture(folder / "a.png", (96, 96))
    sum_ = "what is 3 plus 4 ?"
    rows = [
        asked(question=sum_, answer="7"),
        asked(question=sum_, answer="cat"),
        {"messages": [{"role": "user", "content": sum_}]},
        asked(("image", "a.png"), question="how many things are there ?", answer="many"),
    ]
    return read_conversations(jsonl(folder / "data.jsonl", rows), need_answer=False)


def greedy(model: Any, processor: Any, conversation: Any, tokens: int) -> str:
    """The slow way: the most likely token, one forward pass each."""
    question = Encoder(processor, modality_token_ids(model.config)).question(conversation)
    inputs = dict(question.inputs)
    new: list[int] = []
    for _ in range(tokens):
        token = int(model(**inputs).logits[0, -1].argmax())
        new.append(token)
        if token == processor.tokenizer.eos_token_id:
            break
        inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[token]])], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return processor.tokenizer.decode(new, skip_special_tokens=True).strip()


def test_answers_are_the_models_own_whatever_the_data_say(
    model: Any, processor: Any, questions: list[Any]
) -> None:
    found = own_answers(model, processor, questions, answering=Answering(tokens=6))
    wanted = [greedy(model, processor, row, 6) for row in questions]
    assert [row.turns[-1].text for row in found] == wanted
    assert wanted[0] == wanted[1] == wanted[2] == "7"
    for row, before in zip(found, questions, strict=True):
        assert row.name == before.name and row.media == before.media
        assert [turn.role for turn in row.turns] == ["user", "assistant"]


def test_answers_in_the_cache_are_not_generated_again(
    model: Any, processor: Any, questions: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache: dict[str, str] = {}
    own_answers(model, processor, questions, answering=Answering(tokens=2), cache=cache)
    assert len(cache) == 2  # the first three ask the same
    steps: list[tuple[int, int]] = []
    generate: Callable[..., Any] = model.generate
    calls: list[int] = []
    monkeypatch.setattr(model, "generate", lambda **a: calls.append(1) or generate(**a))
    own_answers(
        model, processor, questions, None, Answering(2), cache, lambda *step: steps.append(step)
    )
    assert not calls and steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    own_answers(model, processor, questions[:1], None, Answering(3), cache)
    assert calls, "other settings are other answers"


def test_sampling_follows_the_seed_and_leaves_the_random_state_alone(
    model: Any, processor: Any, questions: list[Any]
) -> None:
    def sampled(seed: int, rows: list[Any]) -> list[str]:
        hot = Answering(tokens=8, temperature=5.0, seed=seed)
        return [row.turns[-1].text for row in own_answers(model, processor, rows, None, hot)]

    state = torch.get_rng_state()
    first = sampled(0, questions)
    assert torch.equal(torch.get_rng_state(), state)
    assert sampled(0, questions[3:]) == first[3:], "an answer must not depend on other questions"
    assert sampled(1, questions) != first


def test_what_cannot_be_asked_is_refused_by_name(model: Any, processor: Any) -> None:
    plain = read_conversations([{"text": "Cats purr."}], need_answer=False)
    with pytest.raises(DataError, match="row 1: a plain text asks nothing"):
        own_answers(model, processor, plain)
    row = read_conversations([asked(question="what is 3 plus 4 ?")], need_answer=False)
    short = Encoder(processor, {}, max_length=2)
    with pytest.raises(DataError, match=r"row 1: the question has \d+ tokens, more than the 2"):
        own_answers(model, processor, row, short)
    with pytest.raises(TypeError, match=r"Linear has no generate\(\)"):
        own_answers(torch.nn.Linear(1, 1), processor, row)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokens": 0}, "answer tokens must be 1 or more, got 0"),
        ({"temperature": -1.0}, "temperature must be between 0 and 10, got -1.0"),
        ({"temperature": float("nan")}, "temperature must be between 0 and 10, got nan"),
    ],
)
def test_settings_out_of_range_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Answering(**fields)


def test_a_file_of_answers_survives_a_killed_run(tmp_path: Path) -> None:
    from tamp_modifier.workflows.answers import AnswerFile

    path = tmp_path / "deep" / "answers.jsonl"
    AnswerFile(path)["a"] = "one\ntwo"
    with open(path, "a") as file:
        file.write('{"key": "b", "ans')  # killed while writing
    again = AnswerFile(path)
    assert dict(again) == {"a": "one\ntwo"}
    again["b"] = "three"
    assert dict(AnswerFile(path)) == {"a": "one\ntwo", "b": "three"}
