"""Encoding with real processors: the demo model's, and one that hears."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as tf

from tamp_modifier.data import (
    Conversation,
    DataError,
    Encoder,
    choose,
    longest_input,
    read_conversations,
)
from tamp_modifier.demo.evaluation import Sample, encode, load_processor
from tamp_modifier.demo.pictures import draw
from tamp_modifier.demo.processing import CHAT_TEMPLATE, build_tokenizer
from tamp_modifier.demo.questions import balance_keys, balanced_picture_question
from tests.data.files import asked, jsonl, picture, sound, video

IMAGE, IMAGE_TOKENS = 6, 144
PLACEHOLDERS = {"image": (IMAGE,)}


@pytest.fixture(scope="module")
def processor() -> Any:
    return load_processor()


def read(folder: Path, *rows: Any) -> list[Conversation]:
    return read_conversations(jsonl(folder / "data.jsonl", rows))


def test_a_conversation_is_encoded_as_the_demo_does_it(tmp_path: Path, processor: Any) -> None:
    scene, question = balanced_picture_question("what", random.Random(1), balance_keys("what")[0])
    draw(scene).save(tmp_path / "a.png")
    row = asked(("image", "a.png"), question=question.question, answer=question.answer)
    found = Encoder(processor, PLACEHOLDERS)(read(tmp_path, row)[0])
    expected = encode([Sample(question, scene)], processor)
    assert set(found.inputs) == set(expected)
    for name, value in expected.items():
        assert torch.equal(found.inputs[name], value), name


def test_the_answer_starts_where_the_prompt_ends(tmp_path: Path, processor: Any) -> None:
    picture(tmp_path / "a.png")
    row = asked(("image", "a.png"), question="what animal is there ?", answer="cat")
    found = Encoder(processor, PLACEHOLDERS)(read(tmp_path, row)[0], find_answer=True)
    ids = found.inputs["input_ids"][0]
    assert found.answer_start is not None
    assert processor.tokenizer.decode(ids[found.answer_start :]) == "cat <eos>"


def exchanges(count: int) -> dict[str, Any]:
    turns = []
    for number in range(count):
        turns += [
            {"role": "user", "content": f"what is {number} plus {number} ?"},
            {"role": "assistant", "content": "six"},
        ]
    turns[0]["content"] = [
        {"type": "image", "path": "a.png"},
        {"type": "text", "text": turns[0]["content"]},
    ]
    return {"messages": turns}


def test_long_conversations_lose_whole_exchanges(tmp_path: Path, processor: Any) -> None:
    picture(tmp_path / "a.png")
    whole, short = (
        Encoder(processor, PLACEHOLDERS, limit)(read(tmp_path, exchanges(4))[0])
        for limit in (None, 170)
    )
    # One exchange has 10 tokens: two markers, six words, the answer and its end; <bos> is 1 more.
    assert len(whole) == 1 + IMAGE_TOKENS + 40 and len(short) == 1 + IMAGE_TOKENS + 20
    assert torch.equal(short.inputs["input_ids"], whole.inputs["input_ids"][:, : len(short)])


def test_then_text_is_cut_and_never_a_picture(tmp_path: Path, processor: Any) -> None:
    picture(tmp_path / "a.png")
    (row,) = read(tmp_path, exchanges(2))
    found = Encoder(processor, PLACEHOLDERS, 150)(row)
    assert len(found) == 150
    assert int((found.inputs["input_ids"] == IMAGE).sum()) == IMAGE_TOKENS
    with pytest.raises(DataError, match=r"data.jsonl:1: its media need 147 tokens"):
        Encoder(processor, PLACEHOLDERS, 146)(row)


def test_pictures_of_dropped_exchanges_go_with_them(tmp_path: Path, processor: Any) -> None:
    picture(tmp_path / "a.png")
    second = asked(("image", "a.png"))["messages"]
    row = {"messages": exchanges(1)["messages"] + second}
    found = Encoder(processor, PLACEHOLDERS, 200)(read(tmp_path, row)[0])
    assert found.inputs["pixel_values"].shape[0] == 1
    assert int((found.inputs["input_ids"] == IMAGE).sum()) == IMAGE_TOKENS


def test_plain_text_has_no_template(tmp_path: Path, processor: Any) -> None:
    found = Encoder(processor, PLACEHOLDERS)(read(tmp_path, {"text": "what animal is there ?"})[0])
    assert processor.tokenizer.decode(found.inputs["input_ids"][0]) == "what animal is there ?"


def test_a_tokenizer_alone_reads_text(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + ' <eos> ' }}{% endfor %}"
    found = Encoder(tokenizer, {})(read(tmp_path, asked())[0])
    assert (
        tokenizer.decode(found.inputs["input_ids"][0]) == "what animal is there ? <eos> cat <eos>"
    )


def test_bos_is_written_once(tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = build_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    chat, plain = read(tmp_path, asked(), {"text": "what"})
    for row, count in ((chat, 1), (plain, 1)):
        ids = Encoder(tokenizer, {})(row).inputs["input_ids"][0].tolist()
        assert ids.count(1) == count and ids[0] == 1


def test_a_missing_template_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.jsonl:1: the chat template of .* cannot write"):
        Encoder(build_tokenizer(), {})(read(tmp_path, asked())[0])


@pytest.mark.parametrize("kind", ["video", "audio"])
def test_media_that_the_model_does_not_take_are_named(
    tmp_path: Path, processor: Any, kind: str
) -> None:
    {"video": video, "audio": sound}[kind](tmp_path / "a.media.mp4".replace("mp4", "mkv"))
    row = asked((kind, "a.media.mkv"))
    with pytest.raises(DataError, match=f"LlavaProcessor, the model's processor, takes no {kind}"):
        Encoder(processor, PLACEHOLDERS)(read(tmp_path, row)[0])


def test_a_sound_reaches_the_processor(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|AUDIO|>"]})
    template = CHAT_TEMPLATE.replace("'image'", "'audio'").replace("<image>", "<|AUDIO|>")
    hears = tf.Qwen2AudioProcessor(
        tf.WhisperFeatureExtractor(feature_size=8, chunk_length=1),
        tokenizer,
        chat_template=template,
        audio_token="<|AUDIO|>",
        audio_bos_token="<unk>",
        audio_eos_token="<unk>",
    )
    sound(tmp_path / "a.wav", seconds=0.5, rate=8000)
    audio_id = tokenizer.convert_tokens_to_ids("<|AUDIO|>")
    (row,) = read(tmp_path, asked(("audio", "a.wav")))
    found = Encoder(hears, {"audio": (audio_id,)})(row)
    assert found.inputs["input_features"].shape == (1, 8, 100)
    # Half a second is 50 frames of 10 ms, of which two convolutions make 12 tokens.
    assert int(found.inputs["feature_attention_mask"].sum()) == pytest.approx(50, abs=1)
    assert int((found.inputs["input_ids"] == audio_id).sum()) in (12, 13)
    assert found.task == "audio"


def test_samples_are_drawn_without_repetition_and_by_seed(tmp_path: Path) -> None:
    rows = read(tmp_path, *[{"text": f"text {n}"} for n in range(20)])
    first, again, other = (choose(rows, 12, 128, seed) for seed in (0, 0, 1))
    assert first == again and first != other
    assert max(Counter(row.name for row in first).values()) == 1
    assert len(choose(rows, None, 128, 0)) == 20 and len(choose(rows, None, 8, 0)) == 8
    with pytest.raises(DataError, match="21 samples are asked for, but the data have 20"):
        choose(rows, 21, 128, 0)


def test_the_longest_input_is_what_model_and_tokenizer_allow() -> None:
    text = tf.LlamaConfig(max_position_embeddings=512)
    assert longest_input(text, SimpleNamespace(model_max_length=int(1e30))) == 512
    assert longest_input(text, SimpleNamespace(model_max_length=300)) == 300
    assert longest_input(SimpleNamespace(), SimpleNamespace()) is None
