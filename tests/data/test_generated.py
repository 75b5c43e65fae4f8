"""Texts that a model makes up."""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any

import pytest
import torch

from tamp_modifier.data import Generating, generate_texts
from tamp_modifier.data.generated import beginning_of_turn, ordinary_tokens


def texts(model: Any, processor: Any, generating: Generating, first: int = 0) -> list[str]:
    return list(chain.from_iterable(generate_texts(model, processor, generating, first)))


def test_half_are_documents_and_half_begin_with_a_users_turn(model: Any, processor: Any) -> None:
    tokenizer, asked = processor.tokenizer, Generating(samples=7, tokens=24, batch_size=2)
    found = texts(model, processor, asked)
    turn = tokenizer.decode(beginning_of_turn(processor))
    assert turn and len(found) == 7
    assert [text.startswith(turn) for text in found] == [False, True] * 3 + [False]
    assert any(tokenizer.eos_token in text for text in found)  # which does not end them
    ordinary = set(ordinary_tokens(tokenizer).tolist())
    for text in found:
        ids = tokenizer(text)["input_ids"]
        assert len(ids) == 24  # read again, they are the tokens that were written
        assert text.startswith(turn) or ids[0] in ordinary
    assert len(set(found)) == 7


def test_a_batch_has_a_stream_of_its_own(model: Any, processor: Any) -> None:
    asked = Generating(samples=6, tokens=16, batch_size=2, seed=3)
    state = torch.get_rng_state()
    found = texts(model, processor, asked)
    assert torch.equal(state, torch.get_rng_state())
    assert texts(model, processor, asked, first=1) == found[2:]
    assert texts(model, processor, Generating(6, 16, batch_size=2, seed=4)) != found


def test_tokens_are_drawn_as_the_model_says(model: Any, processor: Any) -> None:
    # A model that gives two tokens 3 in 4 and 1 in 4, whatever it reads.
    likely, other = ordinary_tokens(processor.tokenizer)[:2].tolist()

    class Two(torch.nn.Module):
        device, config = torch.device("cpu"), model.config

        def generate(self, input_ids: torch.Tensor, **told: Any) -> torch.Tensor:
            assert told["do_sample"] and told["top_k"] == 0 and told["top_p"] == 1.0
            assert told["suppress_tokens"] == [model.config.image_token_id]
            assert told["repetition_penalty"] == 1.0 and told["no_repeat_ngram_size"] == 0
            assert told["min_p"] == 0.0 and told["typical_p"] == 1.0 and told["eos_token_id"] == []
            shape = (len(input_ids), told["max_new_tokens"])
            new = torch.where(torch.rand(shape) < 0.75, likely, other)
            return torch.cat([input_ids, new], 1)

    asked = Generating(samples=40, tokens=100, batch_size=40)
    ids = [processor.tokenizer(t)["input_ids"][1:] for t in texts(Two(), processor, asked)]
    drawn = torch.tensor(list(chain.from_iterable(ids)))
    assert float((drawn == likely).float().mean()) == pytest.approx(0.75, abs=0.03)


def test_without_a_chat_template_all_are_documents(model: Any, processor: Any) -> None:
    bare = copy.deepcopy(processor.tokenizer)
    bare.chat_template = None
    assert beginning_of_turn(bare) == []
    found = texts(model, bare, Generating(samples=4, tokens=16, batch_size=1))
    ordinary = set(ordinary_tokens(bare).tolist())
    assert all(bare(text)["input_ids"][0] in ordinary for text in found)


@pytest.mark.parametrize("content", ["m.content", "m.content[0].text"])
def test_templates_take_text_or_parts(content: str, processor: Any) -> None:
    tokenizer = copy.deepcopy(processor.tokenizer)
    tokenizer.chat_template = "{% for m in messages %}red {{ " + content + " }}{% endfor %}"
    assert beginning_of_turn(tokenizer) == tokenizer("red ", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("field", "value"),
    [("samples", 0), ("tokens", 15), ("batch_size", 0), ("seed", -1), ("temperature", 0.0)],
)
def test_a_bad_number_is_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} must be .*got {value}"):
        Generating(**{field: value})  # type: ignore[arg-type]


def test_a_model_that_cannot_write_is_refused(processor: Any) -> None:
    with pytest.raises(TypeError, match=r"Linear has no generate\(\)"):
        next(generate_texts(torch.nn.Linear(2, 2), processor, Generating()))
