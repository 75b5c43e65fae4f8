"""Answers that a model gives itself, in place of those in the data.

A pruned model reads its own words when it is used. Calibration on what the dense model writes shows
it the inputs that it will have: RAC (arXiv 2509.12464) found answers of the model itself far better
than text of the web, and than questions alone.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from tamp_modifier.data.base import Conversation, Part, Turn
from tamp_modifier.data.collate import Collator
from tamp_modifier.data.encoding import Encoded, Encoder, unanswered
from tamp_modifier.tokens import modality_token_ids


@dataclass(frozen=True)
class Answering:
    """How answers are generated.

    Attributes:
        tokens: most tokens of an answer.
        temperature: of sampling; 0 takes the most likely token each time.
        seed: of sampling. Every question has a random stream of its own.

    Raises:
        ValueError: a number that is not allowed; names it.
    """

    tokens: int = 256
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError(f"answer tokens must be 1 or more, got {self.tokens}")
        if not 0 <= self.temperature <= 10:
            raise ValueError(f"temperature must be between 0 and 10, got {self.temperature}")


def own_answers(
    model: Any,
    processor: Any,
    conversations: Sequence[Conversation],
    encoder: Encoder | None = None,
    answering: Answering = Answering(),
    cache: MutableMapping[str, str] | None = None,
    step: Callable[[int, int], None] = lambda done, total: None,
) -> list[Conversation]:
    """Replace the last answer of each conversation by the model's own, or add it.

    One question at a time, so that an answer does not depend on the other questions.

    Args:
        model: the dense model, with ``generate``.
        processor: its processor or tokenizer.
        conversations: questions; what the assistant says last, if anything, is left out.
        encoder: encodes them for this model; made from its processor and config by default.
        answering: how answers are generated.
        cache: answers by the key of a question (`question_key`); those in it are taken, new ones
            are put in.
        step: called after every question with how many are answered, and of how many.

    Returns:
        The same conversations, each ending with the model's answer, which may be empty.

    Raises:
        DataError: a plain text, which asks nothing, or a question that cannot be encoded.
        TypeError: the model cannot generate.
    """
    check_generates(model, "answer")
    if encoder is None:
        encoder = Encoder(processor, modality_token_ids(model.config))
    questions = [encoder.question(conversation) for conversation in conversations]
    answers = answer_all(lambda: model, processor, questions, answering, cache, step)
    return [with_answer(row, answer) for row, answer in zip(conversations, answers, strict=True)]


def answer_all(
    load: Callable[[], Any],
    processor: Any,
    questions: Sequence[Encoded],
    answering: Answering = Answering(),
    cache: MutableMapping[str, str] | None = None,
    step: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Return a model's answers to encoded questions.

    Args:
        load: returns the model; called with the first question that is not in the cache.
        processor: its processor or tokenizer.
        questions: from `Encoder.question`.
        answering, cache, step: as of `own_answers`.

    Raises:
        TypeError: the model cannot generate.
    """
    cache = {} if cache is None else cache
    model = collator = None
    found = []
    for number, question in enumerate(questions, start=1):
        key = question_key(question, answering)
        if key not in cache:
            if model is None:
                model = load()
                check_generates(model, "answer")
                collator = Collator(processor, dtype=model.dtype)
            cache[key] = _answer(model, processor, collator, question, answering, key)
        found.append(cache[key])
        step(number, len(questions))
    return found


def check_generates(model: Any, what: str) -> None:
    """Refuse a model that cannot do what is asked ("answer", "write texts").

    Raises:
        TypeError: it has no ``generate``.
    """
    if not callable(getattr(model, "generate", None)):
        raise TypeError(f"{type(model).__name__} has no generate(), so it cannot {what}")


def question_key(question: Encoded, answering: Answering) -> str:
    """Return what tells a question from all others: a digest of its inputs and the settings."""
    digest = hashlib.sha256(repr(answering).encode())
    for name, value in sorted(question.inputs.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)} ".encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@torch.inference_mode()
def _answer(
    model: Any,
    processor: Any,
    collator: Any,
    question: Encoded,
    answering: Answering,
    key: str,
) -> str:
    tokenizer = getattr(processor, "tokenizer", processor)
    batch = {name: value.to(model.device) for name, value in collator([question]).items()}
    pad = getattr(tokenizer, "pad_token_id", None)
    arguments: dict[str, Any] = {} if pad is None else {"pad_token_id": pad}
    if answering.temperature:
        # The model's own top-k and top-p would make the words less varied than it says.
        arguments |= {"temperature": answering.temperature, "top_k": 0, "top_p": 1.0}
    with random_stream(int(key[:15], 16)):
        tokens = model.generate(
            **batch,
            max_new_tokens=answering.tokens,
            do_sample=answering.temperature > 0,
            **arguments,
        )
    new = tokens[0, batch["input_ids"].shape[1] :]
    return tokenizer.decode(new, skip_special_tokens=True).strip()


@contextlib.contextmanager
def random_stream(seed: int) -> Iterator[None]:
    """Draw from a stream of its own; torch's streams go on as if nothing had been drawn."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def with_answer(conversation: Conversation, answer: str) -> Conversation:
    """Return a conversation that ends with an answer, in place of what the assistant said last."""
    turns = unanswered(conversation).turns
    return replace(conversation, turns=(*turns, Turn("assistant", (Part("text", text=answer),))))
