"""Calibration and evaluation data: conversations with media, encoded and joined into batches.

``conversations`` reads files, ``media`` decodes, ``encoding`` calls the model's processor,
``collate`` makes batches. All of it works with transformers alone, without llm-compressor.
"""

from tamp_modifier.data.collate import Collator, make_loader
from tamp_modifier.data.conversations import Conversation, DataError, Part, Turn, read_conversations
from tamp_modifier.data.encoding import Encoded, Encoder, choose, cut_text, longest_input

__all__ = [
    "Collator",
    "Conversation",
    "DataError",
    "Encoded",
    "Encoder",
    "Part",
    "Turn",
    "choose",
    "cut_text",
    "longest_input",
    "make_loader",
    "read_conversations",
]
