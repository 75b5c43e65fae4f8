"""Scores a model on conversations with short answers: exact matches and likelihood, per task.

One forward pass replaces decoding: every token of the right answer is the most likely one after the
tokens before it if and only if greedy decoding gives exactly this answer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tamp_modifier.data import Collator, Encoded


@dataclass(frozen=True)
class TaskScore:
    """Scores of one task.

    Attributes:
        samples: number of questions.
        accuracy: share of exactly right answers, 0 to 1.
        nll: negative log-likelihood per token of the right answer in nats, mean over questions.
    """

    samples: int
    accuracy: float
    nll: float


@torch.inference_mode()
def score_answers(
    model: Any,
    samples: Sequence[Encoded],
    collator: Collator,
    batch_size: int = 1,
    ends: Collection[int] = (),
    step: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, TaskScore]:
    """Ask a model all questions.

    Args:
        model: takes the collator's batches and gives logits.
        samples: encoded with ``find_answer``.
        collator: joins them.
        batch_size: questions at once.
        ends: ids that end an answer; what the chat template writes after one does not count.
        step: called after every batch with how many questions are done, and of how many.

    Returns:
        Scores by task, in the order in which tasks first occur.

    Raises:
        ValueError: logits that are not finite.
    """
    found: dict[str, list[tuple[bool, float]]] = {sample.task: [] for sample in samples}
    for start in range(0, len(samples), batch_size):
        some = samples[start : start + batch_size]
        batch = {name: value.to(model.device) for name, value in collator(some).items()}
        logits = model(**batch, use_cache=False).logits
        for row, sample in enumerate(some):
            first = int(batch["attention_mask"][row].argmax())  # after padding on the left
            found[sample.task].append(_score(logits[row, first:], sample, ends))
        step(start + len(some), len(samples))
    return {
        task: TaskScore(
            len(rows),
            sum(right for right, _ in rows) / len(rows),
            sum(nll for _, nll in rows) / len(rows),
        )
        for task, rows in found.items()
    }


def _score(logits: torch.Tensor, sample: Encoded, ends: Collection[int]) -> tuple[bool, float]:
    """Whether the answer is exactly right, and its mean negative log-likelihood."""
    assert sample.answer_start is not None
    answer = sample.inputs["input_ids"][0, sample.answer_start :].tolist()
    length = next((i + 1 for i, token in enumerate(answer) if token in ends), len(answer))
    wanted = torch.tensor(answer[:length], device=logits.device)
    before = sample.answer_start - 1
    scores = logits[before : before + length].float().log_softmax(-1)
    nll = -float(scores.gather(1, wanted[:, None]).mean())
    if nll != nll:
        raise ValueError(f"{sample.name}: the logits of the model are not finite")
    return bool((scores.argmax(-1) == wanted).all()), nll


def end_ids(model: Any, tokenizer: Any) -> set[int]:
    """Ids that end an answer, by the generation config and the tokenizer."""
    generation = getattr(model, "generation_config", None)
    values = [getattr(generation, "eos_token_id", None), getattr(tokenizer, "eos_token_id", None)]
    return {
        int(i) for v in values for i in (v if isinstance(v, list | tuple) else [v]) if i is not None
    }


def retention(score: TaskScore, reference: TaskScore) -> float | None:
    """Accuracy relative to the reference; None where the reference has none right."""
    return score.accuracy / reference.accuracy if reference.accuracy else None
