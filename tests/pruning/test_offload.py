"""Models whose weights are offloaded are pruned as those in memory, one decoder layer at a time."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from compressed_tensors.offload import set_onload_device
from compressed_tensors.offload.cache import CPUCache, DiskCache

from tamp_modifier import TAMPModifier
from tests.architectures.inputs import IMAGE_ID, LENGTHS, pictures, tokens, with_inputs
from tests.architectures.tiny import DENSE, TEXT, TOWER
from tests.running import linear_weights, prune, sparsity

LAYERS = 6
NAMES = [f"model.language_model.layers.{i}.{linear}" for i in range(LAYERS) for linear in DENSE]


class Loaded:
    """Bytes of the tensors that were read from disk and are still held."""

    def __init__(self) -> None:
        self.now = self.peak = self.total = 0

    def add(self, tensor: torch.Tensor) -> None:
        size = tensor.numel() * tensor.element_size()
        self.now += size
        self.total += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(tensor, self._forget, size)

    def _forget(self, size: int) -> None:
        self.now -= size


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Loaded:
    counter, onload = Loaded(), DiskCache.onload

    def counted(cache: DiskCache, offloaded: torch.Tensor | None) -> torch.Tensor | None:
        tensor = onload(cache, offloaded)
        if tensor is not None:
            counter.add(tensor)
        return tensor

    monkeypatch.setattr(DiskCache, "onload", counted)
    return counter


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaVA with more decoder layers than may be held at once."""
    torch.manual_seed(0)
    config = tf.LlavaConfig(
        vision_config=tf.CLIPVisionConfig(image_size=16, **TOWER),
        text_config=tf.LlamaConfig(**{**TEXT, "num_hidden_layers": LAYERS}),
        image_token_index=IMAGE_ID,
        image_seq_length=16,
    )
    folder = tmp_path_factory.mktemp("model")
    tf.LlavaForConditionalGeneration(config).save_pretrained(folder)
    return folder


def prune_saved(
    saved: Path, folder: Path, fields: dict[str, Any], on_cpu: bool = False, **options: Any
) -> tf.LlavaForConditionalGeneration:
    model = tf.LlavaForConditionalGeneration.from_pretrained(saved, **options)
    if on_cpu:
        set_onload_device(model, torch.device("cpu"))
        assert isinstance(model.get_submodule(NAMES[0])._parameters, CPUCache)
    torch.manual_seed(1)
    batches = [
        with_inputs(
            tokens(("text", before), ("image", 16), ("text", after)), pixel_values=pictures(1)
        )[0]
        for before, after in LENGTHS[:2]
    ]
    layers = {"sequential_targets": ["LlamaDecoderLayer"]}
    prune(model, batches, TAMPModifier(**fields), folder / "config", **layers)
    return model


RECIPES: dict[str, dict[str, Any]] = {
    "das": {},
    "sparsegpt": {"score": "sparsegpt", "mask_structure": "2:4"},
}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_offloaded_weights_are_pruned_as_those_in_memory(
    saved: Path, tmp_path: Path, loaded: Loaded, recipe: str
) -> None:
    fields = RECIPES[recipe]
    in_memory = linear_weights(prune_saved(saved, tmp_path, fields), NAMES)
    on_cpu = prune_saved(saved, tmp_path, fields, on_cpu=True)
    assert loaded.total == 0
    on_disk = prune_saved(
        saved,
        tmp_path,
        fields,
        device_map={"": "disk"},
        offload_folder=str(tmp_path / "offloaded"),
    )
    assert isinstance(on_disk.get_submodule(NAMES[0])._parameters, DiskCache)
    layer = sum(weight.nbytes for name, weight in in_memory.items() if ".layers.0." in name)
    assert layer < loaded.peak <= 2 * layer < loaded.total
    for name, weight in in_memory.items():
        assert 0.2 < sparsity(weight) < 0.8
        assert torch.equal(on_cpu.get_submodule(name).weight, weight), name
        assert torch.equal(on_disk.get_submodule(name).weight, weight), name


@pytest.mark.slow
def test_a_model_pruned_on_disk_is_saved_pruned(saved: Path, tmp_path: Path) -> None:
    model = prune_saved(
        saved,
        tmp_path,
        {"one_pass": True},
        device_map={"": "disk"},
        offload_folder=str(tmp_path / "offloaded"),
    )
    model.save_pretrained(tmp_path / "pruned")
    again = tf.LlavaForConditionalGeneration.from_pretrained(tmp_path / "pruned")
    weights = linear_weights(again, NAMES)
    zeros = sum(int((weight == 0).sum()) for weight in weights.values())
    assert zeros / sum(w.numel() for w in weights.values()) == pytest.approx(0.5, abs=0.01)
    # What lies on disk elsewhere is as it was.
    dense = tf.LlavaForConditionalGeneration.from_pretrained(saved)
    assert all(sparsity(weight) == 0 for weight in linear_weights(dense, NAMES).values())
