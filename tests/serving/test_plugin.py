"""The pieces of the plugin on their own."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
from vllm.model_executor.models.utils import WeightsMapper

from tamp_modifier import sparse
from tamp_modifier.checkpoint.marker import config_marker
from tamp_modifier.upstream.check import Name, problem
from tamp_modifier.vllm_plugin import QUANTIZATION, register
from tamp_modifier.vllm_plugin.names import VLLM


class Config:
    """A transformers config with what a test puts into it."""

    def __init__(self, **fields: object) -> None:
        self.__dict__.update(fields)


def test_vllm_finds_the_plugin() -> None:
    points = importlib.metadata.entry_points(group="vllm.general_plugins")
    assert [point.load() for point in points if point.name == QUANTIZATION] == [register]


def test_register_twice_is_harmless() -> None:
    register()
    register()
    assert QUANTIZATION_METHODS.count(QUANTIZATION) == 1


@pytest.mark.parametrize("name", VLLM, ids=str)
def test_vllm_has_the_name(name: Name) -> None:
    assert problem(name) == ""
    assert name.why and name.seen


CHANGED = """
from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
from vllm.model_executor.model_loader.reload import meta
from vllm.model_executor.models.utils import WeightsMapper
del meta.to_meta_tensor
WeightsMapper.apply = lambda self, tensors: tensors
from tamp_modifier.vllm_plugin import register
register()
assert "tamp_sparse" not in QUANTIZATION_METHODS
"""


def test_a_vllm_that_lacks_names_is_told_in_one_line_and_goes_on() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHANGED], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    lines = (done.stdout + done.stderr).splitlines()
    (line,) = (line for line in lines if "tamp-modifier" in line)
    assert "does not serve sparse weights: vllm 0.32.0 lacks " in line
    assert "WeightsMapper.apply(self, weights), which is now (self, tensors)" in line
    assert "vllm.model_executor.model_loader.reload.meta.to_meta_tensor" in line
    assert line.endswith("(tested with vllm 0.32.0)")


def test_importing_the_plugin_is_light() -> None:
    code = (
        "import sys, tamp_modifier.vllm_plugin\n"
        "assert not {'vllm', 'torch', 'llmcompressor'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("marker", "wanted", "recognised"),
    [
        (config_marker("dense"), None, True),
        (config_marker("packed", {"a": 1}), None, True),
        (config_marker("dense"), "fp8", False),  # the user's word counts
        ({"format": "another"}, None, False),
        (None, None, False),
        (None, QUANTIZATION, True),
    ],
)
def test_which_checkpoints_are_recognised(
    marker: dict[str, object] | None, wanted: str | None, recognised: bool
) -> None:
    from tamp_modifier.vllm_plugin.config import TampSparseConfig

    found = TampSparseConfig.override_quantization_method(
        {"quant_method": ""}, wanted, hf_config=Config(compression_config=marker)
    )
    assert found == (QUANTIZATION if recognised else None)


def test_other_quantizations_are_refused() -> None:
    from tamp_modifier.vllm_plugin.config import TampSparseConfig

    with pytest.raises(ValueError, match="'gptq' are not supported"):
        TampSparseConfig.from_config({"quant_method": "gptq", "bits": 4})


def test_fused_linears_are_matched_to_their_parts() -> None:
    from tamp_modifier.checkpoint.marker import Marker
    from tamp_modifier.vllm_plugin.config import TampSparseConfig

    config = TampSparseConfig()
    config.packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}
    assert config.lookup("model.qkv_proj") == (True, None)  # no list: judged by the zeros
    config.marker = Marker({"model.q_proj": 1, "model.k_proj": 2, "model.v_proj": 4, "o_proj": 8})
    assert config.lookup("model.qkv_proj") == (True, 7)
    assert config.lookup("o_proj") == (True, 8)
    assert config.lookup("down_proj") == (False, None)
    del config.marker.linears["model.k_proj"]  # type: ignore[union-attr]
    assert config.lookup("model.qkv_proj") == (True, None)
    config.apply_vllm_mapper(WeightsMapper(orig_to_new_prefix={"model.": "language_model."}))
    assert config.lookup("language_model.qkv_proj") == (True, None)


def test_the_mapper_unpacks_in_every_join() -> None:
    from tamp_modifier.vllm_plugin.weights import JoiningMapper

    weight = torch.randn(8, 40).bfloat16().relu()
    tensors = sparse.to_tensors(sparse.pack(weight), "a.weight")
    stream = [*tensors.items(), ("norm", torch.ones(3))]
    renaming = WeightsMapper(orig_to_new_prefix={"a.": "b."})
    for mapper in (renaming | JoiningMapper(), JoiningMapper() | renaming):
        assert isinstance(mapper, JoiningMapper)
        out = dict(mapper.apply(iter(stream)))
        assert out.keys() == {"b.weight", "norm"}
        assert torch.equal(out["b.weight"], weight)


def test_checksums_are_compared_in_the_outermost_stream() -> None:
    from vllm.model_executor.models.utils import WeightsMapper

    from tamp_modifier.checkpoint.integrity import dense_name, stored_checksum
    from tamp_modifier.vllm_plugin.weights import Checks, JoiningMapper

    packed = sparse.to_tensors(sparse.pack(torch.randn(8, 40).bfloat16().relu()), "a.b.weight")
    stored = {**packed, "a.norm": torch.ones(3), "norm": torch.zeros(3)}
    checksums = {dense_name(name): stored_checksum(stored, dense_name(name)) for name in stored}
    mapper = JoiningMapper()
    mapper.checks = Checks(checksums)

    def load(tensors: dict[str, torch.Tensor]) -> set[str]:
        """As vLLM does it: a part maps what it gets once more, by the names that it has inside."""
        names = set()
        for name, tensor in (mapper | WeightsMapper()).apply(iter(tensors.items())):
            inner = [(name.removeprefix("a."), tensor)]
            names |= {name for name, _ in (WeightsMapper() | mapper).apply(iter(inner))}
        return names

    assert load(stored) == {"b.weight", "norm"}
    with pytest.raises(ValueError, match=r"a\.norm is damaged"):
        load({**stored, "a.norm": torch.full((3,), 2.0)})
    other = sparse.to_tensors(sparse.pack(torch.randn(8, 40).bfloat16().relu()), "a.b.weight")
    with pytest.raises(ValueError, match=r"a\.b\.weight is damaged"):
        load({**stored, **other})
    assert load(stored) == {"b.weight", "norm"}  # a stream that failed leaves nothing behind


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    from tamp_modifier.checkpoint.integrity import check_folder
    from tamp_modifier.checkpoint.marker import Marker
    from tests.serving.models import WEIGHTS, write

    write(tmp_path, {"a.weight": torch.ones(64, 64)})
    check_folder(tmp_path, Marker())
    whole = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="is not a readable safetensors file"):
        check_folder(tmp_path, Marker())
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(ValueError, match="holds no safetensors files"):
        check_folder(tmp_path, Marker())


def test_half_of_the_shards_are_refused(tmp_path: Path) -> None:
    from tamp_modifier.checkpoint.files import INDEX_FILE
    from tamp_modifier.checkpoint.integrity import check_folder
    from tamp_modifier.checkpoint.marker import Marker
    from tests.serving.models import WEIGHTS, write

    write(tmp_path, {"a.weight": torch.ones(64, 64)})
    (tmp_path / WEIGHTS).rename(tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(FileNotFoundError, match="model-00002-of-00002.safetensors"):
        check_folder(tmp_path, Marker())
    (tmp_path / INDEX_FILE).write_text('{"weight_map": ["a.weight"]}')
    with pytest.raises(ValueError, match="is not a safetensors index"):
        check_folder(tmp_path, Marker())
