"""Texts that a model makes up, from nothing: data where there are none, or of kinds that they lack.

Half of them are documents that begin with a token drawn at random, as in LLM-QAT (arXiv 2305.17888,
section 3.1); half begin where a user's turn does, so that the model asks and answers itself, as in
Magpie (arXiv 2406.08464). Without a chat template all are documents.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tamp_modifier.data.answers import check_generates, random_stream
from tamp_modifier.tokens import modality_token_ids

MARK = "\x1f"
"""Stands for what a user says, in a chat template."""


@dataclass(frozen=True)
class Generating:
    """How texts are generated.

    Attributes:
        samples: how many.
        tokens: of each, its beginning included.
        temperature: of sampling, from all tokens.
        batch_size: texts at once; another one gives other texts.
        seed: of sampling; each batch has a random stream of its own.

    Raises:
        ValueError: a number that is not allowed; names it.
    """

    samples: int = 256
    tokens: int = 256
    temperature: float = 1.0
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("samples", 1), ("tokens", 16), ("batch_size", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, got {getattr(self, name)}")
        if not 0 < self.temperature <= 10:
            raise ValueError(f"temperature must be above 0 and up to 10, got {self.temperature}")

    @property
    def batches(self) -> range:
        """First text of each batch."""
        return range(0, self.samples, self.batch_size)


def generate_texts(
    model: Any, processor: Any, generating: Generating, first: int = 0
) -> Iterator[list[str]]:
    """Yield texts batch by batch; special tokens are written out, as a tokenizer reads them.

    Args:
        model: with ``generate``.
        processor: its processor or tokenizer.
        generating: how many, and how.
        first: of `Generating.batches`, the place of the batch to begin with.

    Raises:
        TypeError: the model cannot generate.
        ValueError: the beginning of a turn takes all tokens.
    """
    check_generates(model, "write texts")
    tokenizer = getattr(processor, "tokenizer", processor)
    media = [token for ids in modality_token_ids(model.config).values() for token in ids]
    own = list(tokenizer("")["input_ids"])  # what the tokenizer puts before every text itself
    turn = beginning_of_turn(processor)
    if len(turn) >= generating.tokens:
        raise ValueError(
            f"tokens is {generating.tokens}; the beginning of a turn alone has {len(turn)}"
        )
    drawn = ordinary_tokens(tokenizer)
    for number, begin in list(enumerate(generating.batches))[first:]:
        places = range(begin, min(begin + generating.batch_size, generating.samples))
        # Every second text is a conversation; those of a kind begin with as many tokens.
        conversations = [place for place in places if turn and place % 2]
        documents = [place for place in places if place not in conversations]
        found: dict[int, str] = {}
        with random_stream(generating.seed * 1_000_003 + number):
            words = drawn[torch.randint(len(drawn), (len(documents), 1))]
            begun = (
                (documents, torch.cat([torch.tensor([own] * len(words)).long(), words], 1)),
                (conversations, torch.tensor([turn] * len(conversations))),
            )
            for kind, starts in begun:
                if kind:
                    rows = _continued(model, tokenizer, starts, generating, media).tolist()
                    found |= zip(kind, (_text(tokenizer, row, own) for row in rows), strict=True)
        yield [found[place] for place in places]


def beginning_of_turn(processor: Any) -> list[int]:
    """Return the tokens of a conversation before the user's first word; [] without a template."""
    tokenizer = getattr(processor, "tokenizer", processor)
    template = getattr(tokenizer, "chat_template", None) or getattr(
        processor, "chat_template", None
    )
    if not template:
        return []
    for content in (MARK, [{"type": "text", "text": MARK}]):
        said = [{"role": "user", "content": content}]
        try:
            text = tokenizer.apply_chat_template(said, tokenize=False, chat_template=template)
        except Exception:  # templates raise what they like where they want the other form
            continue
        before, mark, _ = text.partition(MARK)
        if mark:
            return list(tokenizer(before, add_special_tokens=False)["input_ids"])
    return []


def ordinary_tokens(tokenizer: Any) -> Tensor:
    """Return all tokens that stand for text, int64."""
    special = set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", {}))
    return torch.tensor([token for token in range(tokenizer.vocab_size) if token not in special])


@torch.inference_mode()
def _continued(
    model: Any, tokenizer: Any, starts: Tensor, generating: Generating, media: list[int]
) -> Tensor:
    starts = starts.to(model.device)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    return model.generate(
        input_ids=starts,
        attention_mask=torch.ones_like(starts),
        do_sample=True,
        # What the model's own settings ask for would make the texts less varied than it is.
        temperature=generating.temperature,
        top_k=0,
        top_p=1.0,
        min_p=0.0,
        typical_p=1.0,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        max_new_tokens=generating.tokens - starts.shape[1],
        eos_token_id=[],  # a text that ends goes on with the next one
        suppress_tokens=media or None,  # they stand for pictures that are not there
        pad_token_id=pad,
    )


def _text(tokenizer: Any, row: Sequence[int], own: Sequence[int]) -> str:
    """Return what the tokenizer turns into these tokens, but for those it adds itself."""
    begins = own and list(row[: len(own)]) == list(own)
    return str(tokenizer.decode(row[len(own) :] if begins else row, skip_special_tokens=False))
