"""Keys and values of a cross-attention see pictures, not tokens; encoder-decoders are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

from tamp_modifier import TAMPModifier
from tamp_modifier.masks import wanda_mask
from tamp_modifier.report import PruningReport
from tamp_modifier.statistics import RowScalars
from tests.architectures.inputs import IMAGE_ID, LENGTHS, Batch, pad_together, tokens, with_inputs
from tests.architectures.models import eager
from tests.architectures.tiny import TEXT, VOCABULARY
from tests.running import prune

KEYS = "model.language_model.layers.1.cross_attn.k_proj"
TILES, STATES = 2, 17
"""Tiles of a picture, of which the second may be padding, and states of one tile."""


def mllama() -> Any:
    """Llama 3.2 Vision: the second and the fourth layer attend to pictures."""
    torch.manual_seed(0)
    text = MllamaTextConfig(
        **TEXT | {"num_hidden_layers": 4},
        cross_attention_layers=[1, 3],
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )
    vision = MllamaVisionConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_global_layers=1,
        attention_heads=2,
        intermediate_size=24,
        vision_output_dim=32,
        image_size=16,
        patch_size=4,
        max_num_tiles=TILES,
        intermediate_layers_indices=[0],
        supported_aspect_ratios=[[1, 1], [1, 2], [2, 1]],
    )
    config = tf.MllamaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE_ID)
    model = tf.MllamaForConditionalGeneration(config).eval()
    for name, parameter in model.named_parameters():
        if "cross_attn_attn_gate" in name or "mlp_gate" in name:
            parameter.data.fill_(0.5)  # at zero, pictures have no part in the output
    return model


def samples(tiles: int = TILES, padding: float = 0.0) -> list[Any]:
    """A picture of one or two tiles in text, two samples of different lengths."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    found = []
    for before, after in LENGTHS[:2]:
        sample = tokens(("text", before), ("image", 1), ("text", after))
        pixels = torch.randn(1, 1, TILES, 3, 16, 16, generator=generator)
        pixels[:, :, tiles:] = padding * torch.randn(1, 1, TILES - tiles, 3, 16, 16)
        real = (torch.arange(TILES) < tiles).long()
        cross = torch.zeros(1, sample[1].shape[1], 1, TILES, dtype=torch.long)
        cross[:, before:] = real  # tokens before the picture do not see it
        found.append(
            with_inputs(
                sample,
                pixel_values=pixels,
                aspect_ratio_ids=torch.tensor([[tiles]]),
                aspect_ratio_mask=real[None, None],
                cross_attention_mask=cross,
            )
        )
    return found


def together(two: list[Any]) -> Batch:
    """Both in one batch, padded on the left."""
    longest = max(types.shape[1] for _, types in two)
    masks = [
        torch.nn.functional.pad(
            inputs["cross_attention_mask"], (0, 0, 0, 0, longest - types.shape[1], 0)
        )
        for inputs, types in two
    ]
    return {**pad_together(without_mask(two))[0], "cross_attention_mask": torch.cat(masks)}


def without_mask(two: list[Any]) -> list[Any]:
    return [
        ({name: value for name, value in inputs.items() if name != "cross_attention_mask"}, types)
        for inputs, types in two
    ]


def masks_of(batches: list[Batch], folder: Path, **fields: Any) -> dict[str, torch.Tensor]:
    """What stays of the keys and values of every cross-attention, calibrated in one pass."""
    model = mllama()
    recipe = TAMPModifier(**{"sparsity": 0.5, "selection": "all", "one_pass": True} | fields)
    prune(model, batches, recipe, folder, pipeline="basic")
    return {
        name: module.weight != 0
        for name, module in model.named_modules()
        if name.endswith(("cross_attn.k_proj", "cross_attn.v_proj"))
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [{}, {"preset": "best"}, {"selection": "text"}, {"selection": "drift"}],
    ids=["default", "best", "text", "drift"],
)
def test_llama_3_2_vision_is_pruned_and_comes_back(fields: Any, tmp_path: Path) -> None:
    model = mllama()
    batches = [inputs for inputs, _ in samples()]
    report = tmp_path / "report.json"
    recipe = TAMPModifier(sparsity=0.5, report_path=str(report), **fields)
    prune(model, batches, recipe, tmp_path, output_dir=str(tmp_path / "pruned"))
    found = PruningReport.load(report)
    assert found.linears[KEYS].tokens_seen == 2 * TILES * STATES
    assert len(found.linears) == 4 * 7
    assert found.reached_sparsity == pytest.approx(0.5, abs=0.01)
    again = tf.MllamaForConditionalGeneration.from_pretrained(tmp_path / "pruned").float().eval()
    with torch.no_grad():
        for batch in batches:
            torch.testing.assert_close(again(**batch).logits, model(**batch).logits)


def test_the_masks_are_those_of_the_states_that_are_not_padding(tmp_path: Path) -> None:
    model, scalars = mllama(), RowScalars(32)

    def see(_module: Any, args: tuple) -> None:
        scalars.update(args[0].flatten(0, -2)[:STATES])

    keys = model.get_submodule(KEYS)
    keys.register_forward_pre_hook(see)
    batches = [inputs for inputs, _ in samples(tiles=1)]
    with eager(model):
        for batch in batches:
            model(**batch)
    expected = wanda_mask(keys.weight.detach(), scalars.result(), 0.5)
    found = masks_of(batches, tmp_path, allocation="uniform")
    assert torch.equal(found[KEYS], expected)
    other = [inputs for inputs, _ in samples(tiles=1, padding=9.0)]
    again = masks_of(other, tmp_path, allocation="uniform")
    assert all(torch.equal(kept, again[name]) for name, kept in found.items())


def test_a_padded_batch_gives_the_masks_of_single_samples(tmp_path: Path) -> None:
    both = samples()
    single = masks_of([inputs for inputs, _ in both], tmp_path)
    padded = masks_of([together(both)], tmp_path)
    assert all(torch.equal(kept, padded[name]) for name, kept in single.items())


def t5() -> Any:
    config = tf.T5Config(vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=2)
    return tf.T5ForConditionalGeneration(config)


def whisper() -> Any:
    config = tf.WhisperConfig(
        vocab_size=VOCABULARY, d_model=32, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48,
        decoder_ffn_dim=48, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1,
    )  # fmt: skip
    return tf.WhisperForConditionalGeneration(config)


def blip2_t5() -> Any:
    """Its text model is an encoder-decoder, it is none itself."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    config = tf.Blip2Config(
        vision_config={**sizes, "num_attention_heads": 2, "image_size": 16, "patch_size": 4},
        qformer_config={
            **sizes,
            "num_attention_heads": 2,
            "encoder_hidden_size": 16,
            "vocab_size": 8,
        },
        text_config=tf.T5Config(vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=1),
    )
    return tf.Blip2ForConditionalGeneration(config)


@pytest.mark.parametrize("make", [t5, whisper, blip2_t5])
def test_encoder_decoders_are_refused_before_any_work(make: Any, tmp_path: Path) -> None:
    model = make().eval()
    batch = {"input_ids": torch.tensor([[3, 4, 5]])}
    with pytest.raises(ValueError, match="is an encoder-decoder, which TAMP does not prune") as e:
        prune(model, [batch], TAMPModifier(sparsity=0.5), tmp_path)
    assert "\n" not in str(e.value)
