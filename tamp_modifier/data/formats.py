"""Rows that are no list of turns: questions with answers, in the words that people use for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from tamp_modifier.data.base import DataError, short
from tamp_modifier.data.fields import Fields
from tamp_modifier.data.files import parse_json

TURNS = ("messages", "conversations", "conversation")
QUESTION = ("question", "prompt", "instruction", "query")
ANSWER = ("answer", "completion", "response", "output", "multiple_choice_answer")
CAPTION = ("text", "caption", "captions", "description", "transcription", "transcript", "sentence")

Messages = list[Any]


def messages_of(fields: Fields) -> Messages | None:
    """Return the turns of a row as messages, whatever the row calls them; takes the keys that it
    reads.

    Returns:
        Messages with role and content, or None for a row that is neither a list of turns nor a
        question.

    Raises:
        DataError: a list of turns without turns, or an answer that cannot be told.
    """
    found = _given_turns(fields)
    if found is None:
        found = _question_and_answer(fields)
    if found is None:
        return None
    system = fields.take("system", "system_prompt")
    return [{"role": "system", "content": system}, *found] if system else found


def caption_of(fields: Fields) -> str | None:
    """Return the text that a row has for its media, or alone; None where there is none.

    Raises:
        DataError: it is no text.
    """
    key = next((key for key in CAPTION if key in fields), None)
    if key is None:
        return None
    text = _choice(fields.take(key), key, fields.name)
    for other in CAPTION:
        if fields.get(other) == text:  # said twice
            fields.take(other)
    return text


def _given_turns(fields: Fields) -> Messages | None:
    key = next((key for key in TURNS if key in fields), None)
    if key is not None:
        found = fields.take(key)
        if isinstance(found, str):  # tables keep turns as JSON
            found = parse_json(found, fields.name)
        if isinstance(found, Mapping):  # a Sequence of objects in older datasets: lists by key
            keys, values = list(found), list(found.values())
            if all(isinstance(value, list) and len(value) == len(values[0]) for value in values):
                found = [dict(zip(keys, turn, strict=True)) for turn in zip(*values, strict=True)]
    elif isinstance(fields.get("input"), list | tuple):  # OpenAI's responses
        found = [
            *_turns(fields.take("instructions"), "system"),
            *fields.take("input"),
            *_turns(fields.take("output"), "assistant"),
        ]
    else:
        return None
    if not isinstance(found, list | tuple) or not found:
        raise DataError(
            f"{fields.name}: expected a list of turns in {key or 'input'!r}, got {short(found)}"
        )
    if "prompt" in fields and fields.get("prompt") == _first_question(found):
        fields.take("prompt")  # UltraChat says it twice
    return list(found)


def _question_and_answer(fields: Fields) -> Messages | None:
    if not fields.has(*QUESTION) and not (fields.has("input") and fields.has(*ANSWER)):
        return None
    question = fields.take(*QUESTION)
    context = fields.take("context", "passage")
    more = fields.take("input")
    if isinstance(question, str) or question is None:
        pieces = [piece for piece in (context, question, more) if piece not in (None, "")]
        if not all(isinstance(piece, str) for piece in pieces):
            raise DataError(f"{fields.name}: the question is {short(pieces)}, expected a text")
        question = "\n".join(pieces)
    elif context or more:
        raise DataError(f"{fields.name}: a question that is a list of turns takes no more text")
    answer = _answer(fields)
    rendered = fields.get("text")  # Alpaca's rows have the whole prompt once more
    if isinstance(rendered, str) and isinstance(question, str) and isinstance(answer, str):
        if question.split("\n")[0] in rendered and answer in rendered:
            fields.take("text")
    return [
        *_history(fields),
        *_turns(question, "user"),
        *_turns(answer, "assistant"),
    ]


def _history(fields: Fields) -> Messages:
    """Earlier exchanges, as pairs of question and answer."""
    found: Messages = []
    pairs = fields.take("history")
    for pair in pairs if isinstance(pairs, list | tuple) else [pairs] if pairs else []:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise DataError(
                f"{fields.name}: history has {short(pair)}, expected pairs of question and answer"
            )
        found += [*_turns(pair[0], "user"), *_turns(pair[1], "assistant")]
    return found


def _turns(value: Any, role: str) -> Messages:
    """Return a text or parts of one turn, or turns as they are."""
    if value is None:
        return []
    if isinstance(value, list | tuple) and any(_is_turn(item) for item in value):
        return list(value)
    return [{"role": role, "content": value}]


def _is_turn(value: Any) -> bool:
    return isinstance(value, Mapping) and ("role" in value or "from" in value)


def _answer(fields: Fields) -> Any:
    """Return the answer; of several the most frequent, of equally frequent ones the first."""
    key = next((key for key in ANSWER if key in fields), "answer")
    answer = fields.take(key)
    alternatives = fields.take("answers")
    if isinstance(answer, list | tuple) and any(isinstance(a, Mapping) for a in answer):
        if any(_is_turn(item) or "type" in item for item in answer if isinstance(item, Mapping)):
            return list(answer)
    if answer is not None:
        answer = _choice(answer, key, fields.name)
    if alternatives is None:
        return answer
    texts = _texts(alternatives, "answers", fields.name)
    if answer is not None and answer not in texts:
        raise DataError(f"{fields.name}: the {key} {short(answer)} is not among the answers")
    return answer if answer is not None else _most_frequent(texts, "answers", fields.name)


def _choice(value: Any, key: str, name: str) -> str:
    if isinstance(value, list | tuple | Mapping):
        return _most_frequent(_texts(value, key, name), key, name)
    return _text(value, key, name)


def _texts(value: Any, key: str, name: str) -> list[str]:
    if isinstance(value, Mapping):  # SQuAD's, or a list of objects as Hugging Face keeps it
        fields = Fields(value, name, f"the {key}")
        value = fields.take("text", "answer")
        fields.refuse_rest({"answer_start", "answer_id", "answer_confidence"})
    found = []
    for item in value if isinstance(value, list | tuple) else [value]:
        found += _texts(item, key, name) if isinstance(item, Mapping) else [_text(item, key, name)]
    return found


def _text(value: Any, key: str, name: str) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool) and value == value:
        return str(value)
    if not isinstance(value, str):
        raise DataError(f"{name}: the {key} is {short(value)}, expected a text")
    return value


def _most_frequent(texts: list[str], key: str, name: str) -> str:
    if not texts:
        raise DataError(f"{name}: there is nothing in {key}")
    return Counter(texts).most_common(1)[0][0]


def _first_question(turns: Any) -> Any:
    for turn in turns:
        if _is_turn(turn) and turn.get("role", turn.get("from")) in ("user", "human"):
            return turn.get("content", turn.get("value"))
    return None
