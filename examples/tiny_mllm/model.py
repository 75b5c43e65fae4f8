"""The demo model: its parts, how they begin, and how it is written to disk."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from examples.tiny_mllm.data import PATCH_GROUPS
from tamp_modifier.demo.pictures import COLOURS, PATCH, SIZE
from tamp_modifier.demo.processing import WordIds, build_processor
from tamp_modifier.demo.questions import KINDS


def build_model(words: WordIds, layers: int = 6, tower_layers: int = 4) -> Any:
    """Make the untrained model: a Siglip tower, a projector and a Llama, all stock classes."""
    import transformers

    classes: Any = transformers
    vision = classes.SiglipVisionConfig(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=tower_layers,
        num_attention_heads=6,
        image_size=SIZE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    text = classes.LlamaConfig(
        vocab_size=words.size,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=words.pad,
        bos_token_id=words.bos,
        eos_token_id=words.eos,
    )
    config = classes.LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=words.image,
        projector_hidden_act="gelu",
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        image_seq_length=(SIZE // PATCH) ** 2,
        tie_word_embeddings=True,
        pad_token_id=words.pad,
        bos_token_id=words.bos,
        eos_token_id=words.eos,
    )
    model = classes.LlavaForConditionalGeneration(config)
    positions = model.model.vision_tower.embeddings.position_embedding.weight
    with torch.no_grad():
        positions.copy_(grid_waves(SIZE // PATCH, positions.shape[1]))
    return model


def grid_waves(side: int, width: int) -> Tensor:
    """Sines and cosines of row and column, [side * side, width].

    As a start of the tower's learned position embeddings they let it look at neighbours at once;
    from the stock random start it took hundreds of steps to tell top from bottom.
    """
    frequencies = 1.0 / (2.0 * side) ** torch.linspace(0, 1, width // 4)
    angles = torch.arange(side)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], 1)
    rows = waves[:, None].expand(side, side, -1)
    columns = waves[None].expand(side, side, -1)
    return torch.cat([rows, columns], -1).flatten(0, 1)


@torch.no_grad()
def plant_lookup(model: Any, words: WordIds, layers: Sequence[int] = (1, 2, 3)) -> None:
    """Let the last key/value head of some layers begin as a lookup of what a word names.

    Queries and keys begin as the same projection on the directions that tell kinds and colours
    apart, so the word "star" attends to the patches that show a star; values and output begin as
    a copy of what those patches tell. After the patch phase, features and word embeddings share
    one space, so this is a head that the model can find by itself, but at these sizes it takes
    thousands of steps. (The idea, with the identity in place of our directions: Trockman and
    Kolter, Mimetic Initialization of Self-Attention Layers, 2023.)

    Args:
        model: After the patch phase.
        words: Vocabulary.
        layers: Indices of decoder layers; those beyond the last are left out.
    """
    table = F.normalize(model.get_input_embeddings().weight.float(), dim=-1)

    def directions(groups: Sequence[Sequence[str]]) -> Tensor:
        rows = [table[words(" ".join(group))] for group in groups]
        centred = torch.cat([row - row.mean(0) for row in rows])
        _, sizes, basis = torch.linalg.svd(centred, full_matrices=False)
        return basis[sizes > 1e-3 * sizes[0]]

    config = model.config.text_config
    width, share = config.head_dim, config.num_attention_heads // config.num_key_value_heads
    names = directions((KINDS, tuple(COLOURS)))
    # Rotary embeddings turn the first dimensions of each half fast; content goes into slow ones.
    slow = [i for i in range(width) if i % (width // 2) >= width // 2 - (len(names) + 1) // 2]
    match = torch.zeros(width, table.shape[1])
    match[slow[: len(names)]] = names
    copied = directions(PATCH_GROUPS)[:width]
    for index in (i for i in layers if i < config.num_hidden_layers):
        attention = model.model.language_model.layers[index].self_attn
        attention.k_proj.weight[-width:] = match
        attention.v_proj.weight[-width:] = 0
        attention.v_proj.weight[-width:][: len(copied)] = copied
        for head in range(share):
            end = attention.q_proj.weight.shape[0] - head * width
            own = slice(end - width, end)
            attention.q_proj.weight[own] = match * (1.0 - 0.5 * head)
            attention.o_proj.weight[:, own] = 0.2 * attention.v_proj.weight[-width:].T


def set_attention(model: Any, name: str) -> None:
    """Choose the attention of tower and language model: "packed" to train, "sdpa" to evaluate."""
    for part in (model.model.language_model, model.model.vision_tower):
        part.config._attn_implementation = name


def export(model: Any, folder: Path) -> None:
    """Write model (bfloat16) and processor as ``from_pretrained`` reads them.

    A tower made by transformers 5 saves its tensors as "vision_tower.*"; vLLM knows the older
    "vision_tower.vision_model.*" alone; transformers reads both, so the older names are written.
    """
    from safetensors.torch import load_file, save_file
    from transformers import LlavaForConditionalGeneration

    folder.mkdir(parents=True, exist_ok=True)
    copy: Any = LlavaForConditionalGeneration(model.config)
    copy.load_state_dict(model.state_dict())
    old, new = "vision_tower.vision_model.", "vision_tower."
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        copy.to(torch.bfloat16).save_pretrained(place)
        build_processor().save_pretrained(place)
        weights = Path(place) / "model.safetensors"
        tensors = load_file(weights)
        renamed = {
            name.replace(new, old) if name.startswith(new) and old not in name else name: tensor
            for name, tensor in tensors.items()
        }
        save_file(renamed, weights, {"format": "pt"})
        for file in Path(place).iterdir():
            file.chmod(0o644)
            os.replace(file, folder / file.name)
