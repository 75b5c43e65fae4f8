"""Turn conversations into model inputs with the model's own processor and chat template."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from tamp_modifier.architectures import PER_TOKEN
from tamp_modifier.data.base import BadRows, Conversation, DataError
from tamp_modifier.data.media import load_audio, load_picture, load_video

FRAMES = 8
"""Frames that are taken from a video by default."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """The model's inputs for one conversation.

    Attributes:
        name: the conversation's name, for messages.
        inputs: tensors by name, of batch size 1.
        answer_start: number of tokens before the last answer; None where it was not asked for.
        task: the conversation's task.
    """

    name: str
    inputs: dict[str, torch.Tensor]
    answer_start: int | None = None
    task: str = "text"

    def __len__(self) -> int:
        return self.inputs["input_ids"].shape[1]


class Encoder:
    """Encode conversations one by one.

    Args:
        processor: a processor or tokenizer of transformers.
        placeholders: ids of media tokens by modality, as ``tokens.modality_token_ids`` finds them.
            They are never cut off.
        max_length: most tokens of a sample. Longer conversations lose whole turns from the end,
            then text from the end.
        frames: frames that are taken from a video.

    Raises:
        DataError: a chat template is needed and there is none, or a sample cannot be encoded.
    """

    def __init__(
        self,
        processor: Any,
        placeholders: Mapping[str, Collection[int]],
        max_length: int | None = None,
        frames: int = FRAMES,
    ) -> None:
        self._processor = processor
        self._tokenizer = getattr(processor, "tokenizer", processor)
        self._placeholders = placeholders
        self._max_length = max_length
        self._frames = frames

    def __call__(self, conversation: Conversation, find_answer: bool = False) -> Encoded:
        """Encode a conversation, its answers included.

        Args:
            conversation: the conversation; its media are decoded here.
            find_answer: also tell where the last answer starts. Then nothing is cut.
        """
        media = self._media(conversation)
        inputs = self._run(conversation, media)
        start = None
        if find_answer:
            start = self._answer_start(conversation, media, inputs)
        else:
            inputs = self._shorten(conversation, media, inputs)
        return Encoded(conversation.name, inputs, start, conversation.task)

    def question(self, conversation: Conversation) -> Encoded:
        """Encode a conversation up to where the model is to answer.

        Args:
            conversation: what the assistant says last, if anything, is left out.

        Raises:
            DataError: it cannot be encoded, asks nothing, or is longer than the most tokens.
        """
        if conversation.plain:
            raise DataError(
                f"{conversation.name}: a plain text asks nothing that a model could answer"
            )
        conversation = unanswered(conversation)
        if not any(turn.role == "user" for turn in conversation.turns):
            raise DataError(f"{conversation.name}: the conversation has no question")
        inputs = self._run(conversation, self._media(conversation), prompt=True)
        length = inputs["input_ids"].shape[1]
        if self._max_length is not None and length > self._max_length:
            raise DataError(
                f"{conversation.name}: the question has {length} tokens, more than the "
                f"{self._max_length} allowed"
            )
        return Encoded(conversation.name, inputs, None, conversation.task)

    # -- media

    def _media(self, conversation: Conversation) -> dict[str, list[Any]]:
        """Return decoded media by kind, in order."""
        load: dict[str, Callable[[Any], Any]] = {
            "image": lambda source: load_picture(source, conversation.name),
            "video": lambda source: load_video(source, conversation.name, self._frames),
            "audio": lambda source: load_audio(source, conversation.name, self.sampling_rate),
        }
        needed = {"image": "image_processor", "video": "video_processor"}
        found: dict[str, list[Any]] = {}
        for part in conversation.media:
            has = self._audio if part.kind == "audio" else self._part(needed[part.kind])
            if has is None:
                raise DataError(
                    f"{conversation.name}: {type(self._processor).__name__}, the model's processor,"
                    f" takes no {part.kind}"
                )
            found.setdefault(part.kind, []).append(load[part.kind](part.source))
        return found

    def _part(self, name: str) -> Any:
        return getattr(self._processor, name, None)

    @property
    def _audio(self) -> Any:
        return self._part("audio_processor") or self._part("feature_extractor")

    @property
    def sampling_rate(self) -> int:
        """Samples a second that the model hears."""
        return getattr(self._audio, "sampling_rate", 16_000)

    # -- text

    def _render(self, conversation: Conversation, prompt: bool = False) -> str:
        """Return the chat template's text; a prompt ends where the assistant is to speak."""
        if conversation.plain:
            return conversation.turns[0].text
        # Templates of models that only read want texts, the others want parts.
        parts = self._tokenizer is not self._processor
        messages = [
            {
                "role": turn.role,
                "content": [
                    {"type": "text", "text": part.text}
                    if part.kind == "text"
                    else {"type": part.kind}
                    for part in turn.parts
                ]
                if parts
                else turn.text,
            }
            for turn in conversation.turns
        ]
        try:
            return self._processor.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=prompt
            )
        except Exception as error:  # whatever jinja, the template or transformers raise
            what = " ".join(str(error).split()) or type(error).__name__
            raise DataError(
                f"{conversation.name}: the chat template of {type(self._processor).__name__} "
                f"cannot write this conversation: {what}"
            ) from None

    def _run(
        self, conversation: Conversation, media: Mapping[str, list[Any]], prompt: bool = False
    ) -> dict[str, torch.Tensor]:
        text = self._render(conversation, prompt)
        arguments: dict[str, Any] = {"return_tensors": "pt"}
        bos = getattr(self._tokenizer, "bos_token", None)
        if bos and text.startswith(bos):
            arguments["add_special_tokens"] = False  # the template has written it
        if "image" in media:
            arguments["images"] = [media["image"]]
        if "video" in media:
            arguments |= _video_arguments(media["video"])
        if "audio" in media:
            arguments["audio"] = media["audio"]
            arguments["sampling_rate"] = self.sampling_rate
        try:
            found = self._processor(text=[text], **arguments)
        except ImportError as error:
            raise ImportError(" ".join(str(error).split())) from None
        except Exception as error:  # processors raise all kinds
            what = " ".join(str(error).split()) or type(error).__name__
            raise DataError(
                f"{conversation.name}: {type(self._processor).__name__} cannot encode it: {what}"
            ) from None
        inputs = {name: torch.as_tensor(value) for name, value in found.items()}
        for kind, tokens in self._placeholders.items():
            if not media and torch.isin(inputs["input_ids"], torch.tensor(list(tokens))).any():
                raise DataError(
                    f"{conversation.name}: the text holds the model's placeholder for {kind}, "
                    f"but the conversation has no {kind}"
                )
        return inputs

    def _answer_start(
        self,
        conversation: Conversation,
        media: Mapping[str, list[Any]],
        inputs: Mapping[str, torch.Tensor],
    ) -> int:
        prompt = self._run(unanswered(conversation), media, prompt=True)["input_ids"][0]
        whole = inputs["input_ids"][0]
        start = len(prompt)
        if start >= len(whole) or not torch.equal(whole[:start], prompt):
            raise DataError(
                f"{conversation.name}: the chat template writes the question differently when the "
                "answer follows, so the start of the answer cannot be found"
            )
        return start

    # -- length

    def _shorten(
        self,
        conversation: Conversation,
        media: Mapping[str, list[Any]],
        inputs: dict[str, torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """Drop the last exchanges, and then text from the end, until the sample fits."""
        limit = self._max_length
        while limit is not None and inputs["input_ids"].shape[1] > limit:
            kept = _without_last_exchange(conversation)
            if kept is None:
                return cut_text(inputs, limit, self._placeholders, conversation.name)
            conversation = kept
            counts = {kind: len([p for p in kept.media if p.kind == kind]) for kind in media}
            media = {kind: media[kind][:count] for kind, count in counts.items() if count}
            inputs = self._run(conversation, media)
        return inputs


def encode_all(
    encoder: Encoder,
    conversations: Sequence[Conversation],
    bad: BadRows,
    step: Callable[[int, int], None] = lambda done, total: None,
    find_answer: bool = False,
) -> tuple[list[Conversation], list[Encoded]]:
    """Encode conversations one after the other.

    Args:
        encoder: encodes one.
        conversations: what is encoded.
        bad: takes note of those that cannot be encoded, as many as it tolerates.
        step: called after every sample with how many are done, and of how many.
        find_answer: also tell where the last answer starts.

    Returns:
        The conversations that could be encoded, and their inputs.

    Raises:
        DataError: one more than tolerated cannot be encoded, or none can.
    """
    kept, found = [], []
    for number, conversation in enumerate(conversations, start=1):
        try:
            found.append(encoder(conversation, find_answer))
            kept.append(conversation)
        except DataError as error:
            bad.add(error)
        step(number, len(conversations))
    if not found and bad.messages:
        raise DataError(f"no sample is left, all were skipped; the first: {bad.messages[0]}")
    return kept, found


def cut_text(
    inputs: Mapping[str, torch.Tensor],
    max_length: int,
    placeholders: Mapping[str, Collection[int]],
    name: str,
) -> dict[str, torch.Tensor]:
    """Cut text off the end of one sample; never a token that stands for media.

    Args:
        inputs: tensors of batch size 1, without padding.
        max_length: tokens that stay, at most.
        placeholders: ids of media tokens by modality.
        name: the sample, for messages.

    Raises:
        DataError: the media alone, with the marker that ends them, are longer.
    """
    ids = inputs["input_ids"][0]
    if len(ids) <= max_length:
        return dict(inputs)
    special = torch.tensor([i for group in placeholders.values() for i in group], dtype=ids.dtype)
    positions = torch.isin(ids, special).nonzero()
    # The token after the last one ends the picture; with it the sample reads as it should.
    needed = int(positions[-1]) + 2 if len(positions) else 1
    if needed > max_length:
        raise DataError(
            f"{name}: its media need {needed} tokens, which is more than the {max_length} allowed; "
            "give a larger maximum length, or smaller or fewer pictures or frames"
        )
    length = len(ids)
    return {
        key: value[:, :max_length] if key in PER_TOKEN and value.shape[1] == length else value
        for key, value in inputs.items()
    }


def choose(
    conversations: Sequence[Conversation], count: int | None, default: int, seed: int
) -> list[Conversation]:
    """Draw samples without repetition, the same for the same seed.

    Args:
        conversations: all there are.
        count: how many are asked for; None takes ``default``, or all where there are fewer.
        default: see ``count``.
        seed: of the draw.

    Raises:
        DataError: fewer than were asked for.
    """
    if count is not None and count > len(conversations):
        raise DataError(f"{count} samples are asked for, but the data have {len(conversations)}")
    wanted = min(default, len(conversations)) if count is None else count
    return random.Random(seed).sample(list(conversations), wanted)


def longest_input(config: Any, tokenizer: Any) -> int | None:
    """Tokens that the model can read at once; None where neither config nor tokenizer tells."""
    get_text = getattr(config, "get_text_config", None)
    text = get_text() if callable(get_text) else config
    limits = [
        getattr(text, "max_position_embeddings", None),
        getattr(tokenizer, "model_max_length", None),
    ]
    # Tokenizers say 1e30 for "no limit".
    known = [limit for limit in limits if isinstance(limit, int) and 0 < limit < 10**9]
    return min(known) if known else None


def unanswered(conversation: Conversation) -> Conversation:
    """Return a conversation without what the assistant says last, if it says something there."""
    if conversation.turns[-1].role != "assistant":
        return conversation
    return replace(conversation, turns=conversation.turns[:-1])


def _without_last_exchange(conversation: Conversation) -> Conversation | None:
    """Return the conversation up to the answer before the last one; None if it has only one."""
    answers = [i for i, turn in enumerate(conversation.turns) if turn.role == "assistant"]
    if len(answers) < 2:
        return None
    return replace(conversation, turns=conversation.turns[: answers[-2] + 1])


def _video_arguments(videos: Iterable[Any]) -> dict[str, Any]:
    from transformers.video_utils import VideoMetadata

    videos = list(videos)
    metadata = [
        VideoMetadata(
            total_num_frames=video.total,
            fps=video.fps,
            duration=video.total / video.fps,
            height=video.frames.shape[1],
            width=video.frames.shape[2],
            frames_indices=video.indices,
        )
        for video in videos
    ]
    frames = [torch.from_numpy(video.frames).permute(0, 3, 1, 2) for video in videos]
    return {"videos": [frames], "video_metadata": [metadata], "do_sample_frames": False}
