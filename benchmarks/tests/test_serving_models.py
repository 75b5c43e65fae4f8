"""Random models, stored in any way, load with what they were pruned and rounded to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

from benchmarks.serving.models import write_random
from tamp_modifier.checkpoint.marker import read_marker
from tamp_modifier.checkpoint.pack import read_config
from tamp_modifier.masks import has_structure

SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("sparsity", "structure"), [(0.0, "0:0"), (0.6, "0:0"), (0.5, "2:4")])
def test_a_random_model_is_what_it_says(
    bits: int, sparsity: float, structure: str, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"shape": SHAPE, "structure": structure}
    write_random(tmp_path / "plain", sparsity, **given)
    write_random(tmp_path / "stored", sparsity, bits=bits, **given)
    assert (read_marker(read_config(tmp_path / "stored")) is not None) == (sparsity > 0)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    stored = AutoModelForCausalLM.from_pretrained(
        tmp_path / "stored", quantization_config=CompressedTensorsConfig(dequantize=True)
    )
    found = dict(stored.named_modules())
    for name, linear in plain.named_modules():
        if not name.endswith("_proj"):
            continue
        weight, rounded = linear.weight.float(), found[name].weight.float()
        assert float((weight == 0).float().mean()) == pytest.approx(sparsity, abs=2e-3)
        assert has_structure(weight, structure)
        assert bool((rounded[weight == 0] == 0).all())
        torch.testing.assert_close(
            rounded, weight, rtol=0.01, atol=float(weight.abs().max()) / (2**bits - 3)
        )
