"""Lay out questions as tokens: a chat of one turn, media first.

``<|im_start|>user\\n`` placeholders question ``<|im_end|>\\n<|im_start|>assistant\\nAnswer:``
answer ``<|im_end|>``. Several questions about one medium share everything before the question:
`Pack` holds the shared prefix once and the questions behind it as chunks, which see the prefix and
themselves and count their positions from the prefix. That is exactly what each would be alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.smolav.media import Medium
from benchmarks.smolav.model import SmolAVConfig
from benchmarks.smolav.questions import Question

IGNORED = -100
"""Label of tokens that are not part of an answer."""


@dataclass(frozen=True)
class Pack:
    """Questions about one medium as one row.

    Attributes:
        prefix: Token ids of the shared beginning [P].
        chunks: Token ids of question and answer [questions, C], padded at the end.
        labels: `chunks` where a token belongs to the answer or ends it, IGNORED elsewhere.
    """

    prefix: Tensor
    chunks: Tensor
    labels: Tensor

    @property
    def input_ids(self) -> Tensor:
        """[P + questions * C]."""
        return torch.cat([self.prefix, self.chunks.flatten()])

    @property
    def position_ids(self) -> Tensor:
        """[P + questions * C]: every chunk goes on where the prefix ends."""
        count, width = self.chunks.shape
        start = len(self.prefix)
        own = torch.arange(start, start + width).repeat(count)
        return torch.cat([torch.arange(start), own])

    @property
    def visible(self) -> Tensor:
        """bool [S, S], True where a row may look at a column."""
        count, width = self.chunks.shape
        start = len(self.prefix)
        owner = torch.cat([torch.full((start,), -1), torch.arange(count).repeat_interleave(width)])
        same = (owner[:, None] == owner[None]) | (owner[None] == -1)
        total = start + count * width
        return same & torch.ones(total, total, dtype=torch.bool).tril()


class Layout:
    """Write prompts for one tokenizer and config."""

    def __init__(self, tokenizer: Any, config: SmolAVConfig) -> None:
        self._tokenizer = tokenizer
        self._config = config
        self._begin = self._ids("<|im_start|>user\n")
        self._turn = self._ids("<|im_end|>\n<|im_start|>assistant\nAnswer:")
        self._end = self._ids("<|im_end|>")

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False).input_ids

    def prefix(self, medium: Medium) -> list[int]:
        """Everything before the question."""
        config = self._config
        ids = list(self._begin)
        if medium.picture is not None:
            ids += [config.image_token_id] * config.image_tokens
        if medium.video is not None:
            ids += [config.video_token_id] * config.video_tokens
        if medium.sound is not None:
            ids += [config.audio_token_id] * config.audio_tokens
        return ids

    def question(self, question: Question) -> list[int]:
        """Return the question and the opening of the answer's turn."""
        return self._ids(question.text) + self._turn

    def answer(self, question: Question) -> list[int]:
        """Return the answer and the end of its turn."""
        return self._ids(f" {question.answer}") + self._end

    def pack(self, medium: Medium, asked: Sequence[Question]) -> Pack:
        """Lays out several questions about one medium."""
        rows = [(self.question(q), self.answer(q)) for q in asked]
        width = max(len(before) + len(after) for before, after in rows)
        chunks = torch.full((len(rows), width), self._end[0])
        labels = torch.full((len(rows), width), IGNORED)
        for row, (before, after) in enumerate(rows):
            total = len(before) + len(after)
            chunks[row, :total] = torch.tensor(before + after)
            labels[row, len(before) : total] = torch.tensor(after)
        return Pack(torch.tensor(self.prefix(medium)), chunks, labels)
