"""What the modifier collects is what a plain forward pass of the model gives.

The first decoder layer is looked at: nothing before it is pruned, so its calibration is that of the
dense model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from llmcompressor.modeling.moe.linearize import linearize_moe
from torch import nn

from tamp_modifier.calibration.attention import attention_weights_from_output, find_attention_module
from tamp_modifier.diversity import DiversityTracker
from tamp_modifier.selection.amia import select_amia
from tests.architectures.inputs import Batch, Sample, tokens
from tests.architectures.models import ARCHITECTURES, Expected, build, eager
from tests.architectures.test_architectures import prune

pytestmark = pytest.mark.slow


class Recorder:
    """What every Linear of the first decoder layer gave, one entry per sample."""

    def __init__(self, model: nn.Module, expected: Expected) -> None:
        first = next(name for name in expected.targets if ".layers.0." in name)
        layer_name = first[: first.index(".layers.0.") + len(".layers.0")]
        self.names = [name for name in expected.targets if name.startswith(f"{layer_name}.")]
        self.outputs: dict[str, list[torch.Tensor]] = {name: [] for name in self.names}
        self.tokens: dict[str, list[torch.Tensor]] = {name: [] for name in self.names}
        self.attention: list[torch.Tensor] = []
        self._model = model
        for name in self.names:
            if ".experts." not in name:
                model.get_submodule(name).register_forward_hook(self._linear(name))
        for name in {name[: name.index(".experts.") + 8] for name in self.names if "exp" in name}:
            model.get_submodule(name).register_forward_pre_hook(self._experts(name))
        attention = find_attention_module(model.get_submodule(layer_name))
        if attention is not None:
            attention.register_forward_hook(self._last_row)

    def _linear(self, name: str) -> Any:
        def hook(_module: nn.Module, _args: tuple, output: torch.Tensor) -> None:
            rows = output.flatten(0, -2)
            self.outputs[name].append(rows)
            self.tokens[name].append(torch.arange(len(rows)))

        return hook

    def _experts(self, container: str) -> Any:
        """Every expert by hand, on the tokens that are routed to it."""

        def hook(module: nn.Module, args: tuple) -> None:
            hidden, top_k_index = args[0], args[1]
            for name in self.names:
                if not name.startswith(f"{container}."):
                    continue
                number, linear = name[len(container) + 1 :].split(".")
                routed = (top_k_index == int(number)).any(dim=1).nonzero().squeeze(1)
                expert, x = module[int(number)], hidden[routed]
                if linear == "down_proj":
                    x = module.act_fn(expert.gate_proj(x)) * expert.up_proj(x)
                self.outputs[name].append(getattr(expert, linear)(x))
                self.tokens[name].append(routed)

        return hook

    def _last_row(self, _module: nn.Module, _args: tuple, output: Any) -> None:
        weights = attention_weights_from_output(output)
        assert weights is not None
        self.attention.append(weights[0, :, -1].mean(0))

    def run(self, batches: list[Batch]) -> None:
        with eager(self._model):
            for batch in batches:
                self._model(**batch)


def importance(recorder: Recorder, name: str, expected: Expected) -> float:
    tracker = DiversityTracker()
    samples = zip(recorder.outputs[name], recorder.tokens[name], expected.token_types, strict=True)
    for outputs, rows, types in samples:
        tracker.update(outputs, types[0][rows])
    return tracker.importance


def selected(recorder: Recorder, name: str, expected: Expected) -> list[list[int]]:
    picks = []
    for sample, (outputs, rows) in enumerate(
        zip(recorder.outputs[name], recorder.tokens[name], strict=True)
    ):
        types = expected.token_types[sample][0][rows]
        if recorder.attention:
            attention = recorder.attention[sample][rows]
        else:
            attention = torch.full((len(rows),), 1.0 / max(len(rows), 1))
        if len(rows) == 0:
            picks.append([])
        else:
            picks.append(rows[select_amia(outputs, types, attention)].tolist())
    return picks


def check_first_layer(name: str, batches: list[Batch], expected: Expected, folder: Path) -> None:
    """Prunes in the sequential pipeline and compares the first layer with a plain forward."""
    model, _, _ = build(name)
    plain, _, _ = build(name)
    linearize_moe(plain)
    recorder = Recorder(plain, expected)
    recorder.run(batches)
    assert recorder.names

    report = prune(model, batches, expected, folder)
    assert report.tokens == expected.counts()
    for linear in recorder.names:
        entry = report.linears[linear]
        assert entry.importance == pytest.approx(importance(recorder, linear, expected), abs=1e-5)
        assert entry.selected == selected(recorder, linear, expected), linear
        assert entry.tokens_seen == sum(len(picks) for picks in entry.selected)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_importance_and_selection_are_those_of_a_plain_forward(name: str, tmp_path: Path) -> None:
    _, batches, expected = build(name)
    check_first_layer(name, batches, expected, tmp_path)


TAKES_TEXT_ALONE = [
    name for name in ARCHITECTURES if name not in ("llama_text", "qwen3_next", "video_llama2_style")
]


def of_text(length: int, like: Batch) -> Sample:
    inputs, types = tokens(("text", length))
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in like:
            inputs[name] = torch.zeros_like(types)
    return inputs, types


def check_with_text_alone(name: str, place: int, folder: Path) -> None:
    _, batches, expected = build(name)
    text, types = of_text(9, like=batches[0])
    batches.insert(place, text)
    expected.token_types.insert(place, types)
    check_first_layer(name, batches, expected, folder)


@pytest.mark.parametrize("name", TAKES_TEXT_ALONE)
def test_the_first_sample_may_be_text_alone(name: str, tmp_path: Path) -> None:
    check_with_text_alone(name, 0, tmp_path)


@pytest.mark.parametrize("name", ["llava_llama", "qwen2_5_vl", "qwen2_audio"])
def test_a_later_sample_may_be_text_alone(name: str, tmp_path: Path) -> None:
    check_with_text_alone(name, 2, tmp_path)


def test_every_sample_may_have_another_modality(tmp_path: Path) -> None:
    _, batches, expected = build("qwen2_5_omni")
    whole = batches[0]
    samples = [
        of_text(9, like=whole),
        (*tokens(("text", 3), ("image", 4), ("text", 2)), "pixel_values", "image_grid_thw"),
        (
            *tokens(("text", 2), ("video", 8), ("text", 5)),
            "pixel_values_videos",
            "video_grid_thw",
            "video_second_per_grid",
        ),
        (
            *tokens(("text", 4), ("audio", 6), ("text", 2)),
            "input_features",
            "feature_attention_mask",
        ),
    ]
    batches = [{**inputs, **{n: whole[n] for n in names}} for inputs, _, *names in samples]
    expected.token_types = [sample[1] for sample in samples]
    check_first_layer("qwen2_5_omni", batches, expected, tmp_path)
