"""Build the processor of the demo model, and turn questions into token ids.

The tokenizer has one token per word. A prompt with a picture reads
``<bos> <user> <image> x 144 question <assistant>``, one without leaves the image tokens out; the
answer ends with ``<eos>``.
"""

from __future__ import annotations

from typing import Any

from tamp_modifier.demo.pictures import PATCH, SIZE
from tamp_modifier.demo.questions import vocabulary

PAD, BOS, EOS, UNKNOWN, USER, ASSISTANT, IMAGE = SPECIAL_TOKENS = (
    "<pad>",
    "<bos>",
    "<eos>",
    "<unk>",
    "<user>",
    "<assistant>",
    "<image>",
)
IMAGE_TOKENS = (SIZE // PATCH) ** 2
"""Image tokens per picture."""

CHAT_TEMPLATE = (
    "{{ '<bos>' }}{% for message in messages %}"
    "{{ ' <user> ' if message['role'] == 'user' else ' <assistant> ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{{ '<image> ' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endif %}"
    "{{ ' <eos>' if message['role'] != 'user' else '' }}{% endfor %}"
    "{{ ' <assistant>' if add_generation_prompt else '' }}"
)


def build_tokenizer() -> Any:
    """Make the word-level tokenizer (a ``PreTrainedTokenizerFast``)."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = list(SPECIAL_TOKENS) + vocabulary()
    words += [f"<unused{index}>" for index in range(-len(words) % 8)]
    tokenizer = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=UNKNOWN)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        additional_special_tokens=[USER, ASSISTANT, IMAGE],
        model_max_length=512,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def build_processor() -> Any:
    """Make the ``LlavaProcessor``: tokenizer, picture processor and chat template."""
    from transformers import LlavaProcessor
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    image_processor = SiglipImageProcessorPil(
        size={"height": SIZE, "width": SIZE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=build_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
    )


class WordIds:
    """Ids of words without the cost of a tokenizer call (the tests compare the two)."""

    def __init__(self) -> None:
        tokenizer = build_tokenizer()
        self._ids: dict[str, int] = tokenizer.get_vocab()
        self.pad, self.bos, self.eos = (self._ids[t] for t in (PAD, BOS, EOS))
        self.user, self.assistant = self._ids[USER], self._ids[ASSISTANT]
        self.image = self._ids[IMAGE]
        self.size = len(self._ids)

    def __call__(self, text: str) -> list[int]:
        """Ids of words separated by spaces; KeyError for a word outside the vocabulary."""
        return [self._ids[word] for word in text.split()]

    def prompt(self, question: str, picture: bool) -> list[int]:
        """Ids of a prompt, up to and including ``<assistant>``."""
        image = [self.image] * IMAGE_TOKENS if picture else []
        return [self.bos, self.user, *image, *self(question), self.assistant]

    def answer(self, answer: str) -> list[int]:
        """Ids of an answer and ``<eos>``."""
        return [*self(answer), self.eos]
