"""Once registered, transformers loads packed checkpoints as the models they were."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

import tamp_modifier
from tamp_modifier.checkpoint.marker import CONFIG_KEY, QUANT_METHOD, read_marker
from tamp_modifier.checkpoint.pack import (
    is_packed,
    pack_checkpoint,
    read_config,
    unpack_checkpoint,
)
from tamp_modifier.demo.evaluation import load_model

SIZES = {
    "vocab_size": 90,
    "hidden_size": 64,
    "intermediate_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LINEAR = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(autouse=True, scope="module")
def registered() -> None:
    """As where transformers was imported first: the order of imports is tested apart."""
    tamp_modifier.register_with_transformers()


def prune(model: nn.Module, keep_dense: tuple[str, ...] = ()) -> nn.Module:
    """Zeros in half of each matrix of the decoder layers, except of those in `keep_dense`."""
    for name, weight in model.named_parameters():
        inside = ".layers." in name and "vision" not in name
        if inside and weight.dim() > 1 and not any(part in name for part in keep_dense):
            weight.data[torch.rand(weight.shape) < 0.5] = 0
    return model


def llama(folder: Path, dtype: torch.dtype = torch.bfloat16, **fields: Any) -> Path:
    torch.manual_seed(0)
    model = prune(LlamaForCausalLM(LlamaConfig(**SIZES, **fields))).to(dtype)
    model.save_pretrained(folder, max_shard_size="60KB")
    return folder


def mixtral(folder: Path) -> Path:
    """A mixture of experts; one Linear of one expert stays dense."""
    torch.manual_seed(1)
    config = MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2)
    model = prune(MixtralForCausalLM(config)).bfloat16()
    model.save_pretrained(folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.block_sparse_moe.experts.2.w1.weight"].fill_(0.5)
    save_file(tensors, file, {"format": "pt"})
    return folder


def box(folder: Path) -> Path:
    torch.manual_seed(2)
    prune(load_model(dtype=torch.bfloat16)).save_pretrained(folder)
    return folder


MODELS: dict[str, tuple[Callable[[Path], Path], Any]] = {
    "tied": (lambda folder: llama(folder, tie_word_embeddings=True), AutoModelForCausalLM),
    "float32": (lambda folder: llama(folder, torch.float32), AutoModelForCausalLM),
    "experts": (mixtral, AutoModelForCausalLM),
    "multimodal": (box, AutoModelForImageTextToText),
}


def assert_same(model: nn.Module, expected: nn.Module) -> None:
    """The same names, dtypes and bits, buffers included (-0 of the weights is +0)."""
    for kind in ("named_parameters", "named_buffers"):
        mine, theirs = dict(getattr(model, kind)()), dict(getattr(expected, kind)())
        assert mine.keys() == theirs.keys()
        for name, tensor in mine.items():
            assert tensor.dtype == theirs[name].dtype, name
            assert torch.equal(tensor, theirs[name]), name


@pytest.fixture(scope="module", params=MODELS)
def folders(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, Any]:
    """A pruned checkpoint, the same packed, and the auto class that loads it."""
    write, auto = MODELS[request.param]
    work = tmp_path_factory.mktemp(request.param)
    dense = write(work / "dense")
    pack_checkpoint(dense, work / "packed")
    return dense, work / "packed", auto


@pytest.mark.parametrize("options", [{}, {"dtype": torch.float32}, {"dtype": "auto"}])
def test_a_packed_model_loads_as_the_dense_one(
    folders: tuple[Path, Path, Any], options: dict[str, Any]
) -> None:
    dense, packed, auto = folders
    expected = auto.from_pretrained(dense, **options)
    model, info = auto.from_pretrained(packed, output_loading_info=True, **options)
    assert not any(info.values()), info
    assert_same(model, expected)


def test_saved_again_it_is_an_ordinary_dense_checkpoint(
    folders: tuple[Path, Path, Any], tmp_path: Path
) -> None:
    dense, packed, auto = folders
    auto.from_pretrained(packed).save_pretrained(tmp_path / "again")
    config = read_config(tmp_path / "again")
    marker = read_marker(config)
    assert "quantization_config" not in config and not is_packed(tmp_path / "again")
    assert marker is not None and marker["linears"] == read_config(packed)[CONFIG_KEY]["linears"]
    assert_same(auto.from_pretrained(tmp_path / "again"), auto.from_pretrained(dense))
    pack_checkpoint(tmp_path / "again", tmp_path / "packed")
    assert_same(auto.from_pretrained(tmp_path / "packed"), auto.from_pretrained(dense))


def test_the_temporary_copy_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack_checkpoint(llama(tmp_path / "dense"), tmp_path / "packed")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "packed")
    assert list((tmp_path / "temporary").iterdir()) == []
    assert model.get_parameter(LINEAR).count_nonzero() > 0


# -- damage ----------------------------------------------------------------------------------------


def _stored(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        for file in folder.glob("*.safetensors"):
            tensors = load_file(file)
            if f"{LINEAR}.tamp_mask" in tensors:
                change(tensors)
                save_file(tensors, file, {"format": "pt"})

    return edit


def _config(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = read_config(folder)
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return edit


def _cut(folder: Path) -> None:
    file = max(folder.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "value": (_stored(lambda t: t[f"{LINEAR}.tamp_values"].view(torch.int16)[7:8].add_(1)), LINEAR),
    "mask": (_stored(lambda t: t[f"{LINEAR}.tamp_mask"].view(-1)[3:4].bitwise_xor_(4)), LINEAR),
    "part": (_stored(lambda t: t.pop(f"{LINEAR}.tamp_header")), f"{LINEAR}.tamp_header"),
    "gone": (
        _stored(lambda t: [t.pop(name) for name in list(t) if name.startswith(LINEAR)]),
        LINEAR.removesuffix(".weight"),
    ),
    "count": (
        _config(lambda c: c[CONFIG_KEY]["linears"].update({LINEAR.removesuffix(".weight"): 7})),
        f"{LINEAR} keeps",
    ),
    "shape": (_config(lambda c: c.update(intermediate_size=96)), "mlp.gate_proj.weight"),
    "truncated": (_cut, "is not a readable safetensors file"),
    "unmarked": (_config(lambda c: c.pop(CONFIG_KEY)), CONFIG_KEY),
    "quantized": (
        _config(lambda c: c["quantization_config"].update(packed_over={"quant_method": "fp8"})),
        "tamp unpack DIR OUT",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_names_the_tensor(kind: str, tmp_path: Path) -> None:
    edit, message = DAMAGE[kind]
    pack_checkpoint(llama(tmp_path / "dense"), tmp_path / "packed")
    edit(tmp_path / "packed")
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        AutoModelForCausalLM.from_pretrained(tmp_path / "packed")


# -- how it is registered --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A packed checkpoint, and the non-zero weights of one of its Linears."""
    work = tmp_path_factory.mktemp("registered")
    pack_checkpoint(llama(work / "dense"), work / "packed")
    dense = AutoModelForCausalLM.from_pretrained(work / "dense")
    return work / "packed", int(dense.get_parameter(LINEAR).count_nonzero())


def load_after(lines: str, folder: Path) -> int:
    """Non-zero weights of a packed Linear that a fresh process loads after some lines of code."""
    code = (
        f"{lines}\n"
        "from transformers import AutoModelForCausalLM\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(folder)!r})\n"
        f"print(int(model.get_parameter({LINEAR!r}).count_nonzero()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "lines",
    [
        "import tamp_modifier\ntamp_modifier.register_with_transformers()",
        "import tamp_modifier\nimport transformers\ntamp_modifier.register_with_transformers()",
        "import tamp_modifier as t\nt.register_with_transformers()\nt.register_with_transformers()",
        "from tamp_modifier import TAMPModifier",
        "import transformers\nimport tamp_modifier",
        "from transformers import AutoModelForCausalLM\nimport tamp_modifier",
    ],
)
def test_packed_checkpoints_load_once_registered(lines: str, packed: tuple[Path, int]) -> None:
    folder, expected = packed
    assert load_after(lines, folder) == expected


@pytest.mark.slow
def test_the_example_of_the_page_loads(packed: tuple[Path, int]) -> None:
    folder, expected = packed
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    (code,) = (c for c in re.findall(r"```python\n(.*?)```", page, re.S) if "register_with" in c)
    assert load_after(code.replace("./packed-model", str(folder)), folder) == expected


@pytest.mark.slow
def test_commands_load_packed_checkpoints(packed: tuple[Path, int]) -> None:
    folder, expected = packed
    lines = f"""from tamp_modifier.workflows.models import load_config, load_model
print(load_model({str(folder)!r}, load_config({str(folder)!r})).dtype)"""
    assert load_after(lines, folder) == expected


def test_no_finder_is_left_behind_by_the_import() -> None:
    code = (
        "import sys\nbefore = [*sys.meta_path]\n"
        "import tamp_modifier\nassert sys.meta_path == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


OLD = """
import sys, types, warnings
registry = types.ModuleType("transformers.quantizers.auto")
registry.AUTO_QUANTIZER_MAPPING = {}
sys.modules["transformers"] = types.ModuleType("transformers")
sys.modules["transformers"].__version__ = "4.0.0"
sys.modules["transformers.quantizers.auto"] = registry
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import tamp_modifier
(warning,) = caught
print(warning.message)
try:
    tamp_modifier.register_with_transformers()
except ImportError as error:
    print(error)
"""


def test_a_transformers_without_such_a_registry_is_told_and_left_alone() -> None:
    done = subprocess.run([sys.executable, "-c", OLD], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    warned, raised = done.stdout.splitlines()
    assert warned == f"transformers will not load packed checkpoints: {raised}"
    assert "transformers 4.0.0 lacks transformers.quantizers.auto.register_quantizer, " in raised


def test_importing_the_package_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, tamp_modifier\nassert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_both_plugins_go_by_one_name() -> None:
    from tamp_modifier.vllm_plugin import QUANTIZATION

    assert QUANTIZATION == QUANT_METHOD


def test_a_quantized_checkpoint_keeps_its_quantization_config(tmp_path: Path) -> None:
    folder = llama(tmp_path / "dense")
    inner = {"quant_method": "compressed-tensors", "config_groups": {"group_0": {}}}
    _config(lambda config: config.update(quantization_config=inner))(folder)
    pack_checkpoint(folder, tmp_path / "packed")
    config = read_config(tmp_path / "packed")
    assert config["quantization_config"] == {"quant_method": QUANT_METHOD, "packed_over": inner}
    shutil.rmtree(folder)
    unpack_checkpoint(tmp_path / "packed", folder)
    assert read_config(folder)["quantization_config"] == inner
