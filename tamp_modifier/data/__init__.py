"""Calibration and evaluation data: conversations with media, encoded and joined into batches.

In the order in which data flow: ``files``, ``tables`` and ``archives`` read rows, ``rows`` makes
conversations of them with ``formats``, ``fields`` and ``references``, ``conversations`` does so for
whole files and folders; ``media`` decodes, ``encoding`` calls the model's processor, ``collate``
makes batches; ``answers`` has a model answer the questions, ``generated`` has it make up
texts. All of it works with transformers alone, without llm-compressor.
"""

from tamp_modifier.data.answers import Answering, answer_all, own_answers, with_answer
from tamp_modifier.data.base import BadRows, Conversation, DataError, Part, Turn
from tamp_modifier.data.collate import Collator, make_loader
from tamp_modifier.data.conversations import read_conversations
from tamp_modifier.data.encoding import (
    Encoded,
    Encoder,
    choose,
    cut_text,
    encode_all,
    longest_input,
)
from tamp_modifier.data.generated import Generating, generate_texts

__all__ = [
    "Answering",
    "BadRows",
    "Collator",
    "Conversation",
    "DataError",
    "Encoded",
    "Encoder",
    "Generating",
    "Part",
    "Turn",
    "answer_all",
    "choose",
    "cut_text",
    "encode_all",
    "generate_texts",
    "longest_input",
    "make_loader",
    "own_answers",
    "read_conversations",
    "with_answer",
]
