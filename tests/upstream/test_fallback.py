"""Models that cannot be cut into their decoder layers are calibrated as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from loguru import logger

from tamp_modifier import TAMPModifier, cli
from tamp_modifier.demo.evaluation import MODEL_FOLDER
from tests.architectures.untraceable import UNTRACEABLE
from tests.data.files import asked, jsonl, picture
from tests.running import prune


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    """What is warned of being cut."""
    lines: list[str] = []
    handle = logger.add(lambda message: lines.append(str(message)), level="WARNING")
    yield lines
    logger.remove(handle)


def build(name: str) -> tuple[Any, list[Any]]:
    torch.manual_seed(0)
    tiny = UNTRACEABLE[name]()
    return tiny.model.eval().float(), [inputs for inputs, _ in tiny.samples]


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", UNTRACEABLE)
def test_the_default_is_what_the_basic_pipeline_gives_and_says_so_once(
    name: str, tmp_path: Path, warnings: list[str]
) -> None:
    model, batches = build(name)
    prune(model, batches, TAMPModifier(sparsity=0.5), tmp_path)
    assert len([line for line in warnings if "cannot be cut into its decoder layers" in line]) == 1
    whole = weights(model)

    model, batches = build(name)
    recipe = TAMPModifier(sparsity=0.5, dense_pipeline="basic")
    prune(model, batches, recipe, tmp_path, pipeline="basic")
    assert all(torch.equal(value, whole[name]) for name, value in weights(model).items())


@pytest.mark.parametrize(
    ("fields", "arguments"),
    [({}, {"pipeline": "sequential"}), ({"dense_pipeline": "sequential"}, {})],
)
@pytest.mark.parametrize("name", ["gemma3n", "blip2"])
def test_who_asks_for_layers_is_told_both_arguments_that_help(
    name: str, fields: dict[str, Any], arguments: dict[str, str], tmp_path: Path
) -> None:
    model, batches = build(name)
    before = weights(model)
    with pytest.raises(RuntimeError) as caught:
        prune(model, batches, TAMPModifier(sparsity=0.5, **fields), tmp_path, **arguments)
    message = str(caught.value)
    assert 'oneshot pipeline="basic"' in message and 'dense_pipeline="basic"' in message
    assert "\n" not in message
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())


def test_torch_is_as_it_was_after_tracing_raised(tmp_path: Path) -> None:
    arange = torch.arange
    model, batches = build("blip2")
    with pytest.raises(RuntimeError, match="tracing raises"):
        prune(model, batches, TAMPModifier(sparsity=0.5), tmp_path, pipeline="sequential")
    assert torch.arange is arange


@pytest.mark.slow
def test_tamp_prune_takes_the_pipeline(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    data = jsonl(tmp_path / "data.jsonl", [asked(("image", "a.png")), asked()])
    found = []
    for more in ([], ["--pipeline", "basic"]):
        out = tmp_path / f"out{len(more)}"
        arguments = ["prune", str(MODEL_FOLDER), "--data", str(data), "--output", str(out)]
        assert cli.main([*arguments, "--allocation", "uniform", "--selection", "all", *more]) == 0
        found.append((out / "model.safetensors").read_bytes())
    assert found[0] != found[1]  # nothing that pruning did was passed on
