"""tamp pack, unpack and inspect: what they write and print, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tamp_modifier import cli
from tamp_modifier.checkpoint.inspection import find_pattern, inspect_checkpoint
from tamp_modifier.checkpoint.marker import CONFIG_KEY, config_marker
from tamp_modifier.checkpoint.pack import pack_checkpoint
from tamp_modifier.checkpoint.served import MIN_SPARSITY
from tamp_modifier.commands.inspect import share_text
from tamp_modifier.sparse import native
from tests.sparse.test_serialization import legacy_24, legacy_bitmask, weight_24

LAYER = "model.layers.0"
LINEARS: dict[str, tuple[tuple[int, int], float]] = {
    f"{LAYER}.self_attn.q_proj": ((64, 64), 0.5),
    f"{LAYER}.self_attn.k_proj": ((32, 64), 0.1),  # with q and v: over the threshold
    f"{LAYER}.self_attn.v_proj": ((32, 64), 0.5),
    f"{LAYER}.self_attn.o_proj": ((64, 64), 0.1),
    f"{LAYER}.mlp.gate_proj": ((96, 64), 0.7),
    f"{LAYER}.mlp.up_proj": ((96, 64), 0.7),
    f"{LAYER}.mlp.down_proj": ((64, 96), 0.0),  # 2:4 below
    "lm_head": ((50, 64), 0.0),
}


def write(folder: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def pruned(shape: tuple[int, int], sparsity: float) -> torch.Tensor:
    """Exactly this share of zeros; half of them -0, as ``weight * mask`` leaves them."""
    weight = torch.rand(shape) + 0.5
    weight.view(-1)[torch.randperm(weight.numel())[: round(sparsity * weight.numel())]] = 0
    return (weight * torch.randn(shape).sign()).bfloat16()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    tensors = {f"{name}.weight": pruned(*how) for name, how in LINEARS.items()}
    down = tensors[f"{LAYER}.mlp.down_proj.weight"]
    down.view(-1, 4)[:, 1:3] = 0
    tensors |= {
        "model.embed_tokens.weight": pruned((50, 64), 0.6),
        "model.norm.weight": torch.ones(64).bfloat16(),
        "model.layers.0.experts.0.w1.weight": pruned((32, 64), 0.5),
    }
    return write(tmp_path / "model", tensors, **{CONFIG_KEY: config_marker("dense")})


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def error(capsys: pytest.CaptureFixture[str]) -> str:
    text = capsys.readouterr().err
    assert text.startswith("tamp: error: ") and text.count("\n") == 1, text
    return text


def test_unpack_gives_back_what_was_packed(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed, out = tmp_path / "packed", tmp_path / "out"
    assert run("pack", model, packed, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["linears"]) == 6 and 0.4 < told["ratio"] < 0.6
    assert told["total_bytes"] < 0.8 * sum(
        t.nbytes for t in load_file(next(model.glob("*.saf*"))).values()
    )
    assert run("unpack", packed, out) == 0
    assert f"wrote {out}" in " ".join(capsys.readouterr().out.split())
    before, after = load_file(model / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        dense = name.removesuffix(".weight") not in told["linears"]
        plain = tensor if dense else torch.where(tensor == 0, 0, tensor)  # -0 becomes +0
        assert torch.equal(plain.view(torch.int16), after[name].view(torch.int16)), name


def test_pack_prints_a_table(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("pack", model, tmp_path / "packed", "--min-sparsity", "0.6") == 0
    words = capsys.readouterr().out.split()
    assert "ratio" in words and "2" in words  # gate and up


def test_legacy_checkpoints_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weight = weight_24()
    second = {key.replace("up_proj", "down_proj"): t for key, t in legacy_24(weight).items()}
    tensors = {key: t.contiguous() for key, t in (legacy_bitmask(weight) | second).items()}
    quantization = {
        "quant_method": "compressed-tensors",
        "config_groups": {},
        "sparsity_config": {"format": "sparse-24-bitmask", "targets": ["Linear"]},
    }
    legacy = write(tmp_path / "legacy", tensors, quantization_config=quantization)
    assert run("unpack", legacy, tmp_path / "dense") == 0
    assert run("pack", legacy, tmp_path / "packed") == 0
    found = load_file(tmp_path / "dense" / "model.safetensors")
    assert len(found) == 2 and all(torch.equal(tensor, weight) for tensor in found.values())
    # vLLM refuses a sparsity_config, and transformers a config without groups.
    assert "quantization_config" not in json.loads((tmp_path / "dense/config.json").read_text())
    capsys.readouterr()
    assert run("inspect", legacy, "--json") == 0
    stored = {linear["stored"] for linear in json.loads(capsys.readouterr().out)["linears"]}
    assert stored == {"sparse-bitmask", "sparse-24-bitmask"}


def test_a_full_folder_is_left_alone(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("pack", model, model) == 1
    assert "is not empty" in error(capsys)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    for command in ("pack", "unpack"):
        assert run(command, model, tmp_path / "full") == 1
        assert "is not empty" in error(capsys)
    assert [item.name for item in (tmp_path / "full").iterdir()] == ["mine"]


@pytest.mark.parametrize("command", ["pack", "unpack", "inspect"])
def test_bad_input_is_one_line(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = [] if command == "inspect" else [tmp_path / "out"]
    assert run(command, tmp_path / "nowhere", *out) == 1
    assert "nowhere" in error(capsys)
    folder = write(tmp_path / "empty", {"a.weight": torch.ones(4, 4)})
    (folder / "model.safetensors").write_bytes(b"12345678 not safetensors")
    assert run(command, folder, *out) == 1
    assert "model.safetensors is not a readable safetensors file" in error(capsys)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


def test_a_damaged_tensor_is_named(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = tmp_path / "packed"
    assert run("pack", model, packed) == 0
    tensors = load_file(packed / "model.safetensors")
    name = f"{LAYER}.mlp.up_proj.weight"
    tensors[f"{name}.tamp_values"].view(torch.int16)[5] += 1
    save_file(tensors, packed / "model.safetensors", {"format": "pt"})
    capsys.readouterr()
    for arguments in (("unpack", packed, tmp_path / "out"), ("inspect", packed)):
        assert run(*arguments) == 1
        assert name in error(capsys)


@pytest.mark.parametrize("share", ["0", "1.5", "nan", "half"])
def test_a_bad_share_is_refused(share: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run("pack", "a", "b", "--min-sparsity", share)
    assert end.value.code == 2
    assert "is not a number above 0 and up to 1" in capsys.readouterr().err


# -- inspect ---------------------------------------------------------------------------------------


@pytest.fixture
def sparse_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every sparse kernel is taken, however fast it is on this machine."""
    monkeypatch.setenv("TAMP_SERVE", "sparse")


def test_inspect_tells_how_each_linear_is_served(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], sparse_kernels: None
) -> None:
    assert run("inspect", model, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    linears = {linear["name"]: linear for linear in told["linears"]}
    assert linears.keys() == LINEARS.keys() | {"model.layers.0.experts.0.w1"}
    for name, (shape, sparsity) in LINEARS.items():
        sparsity = 0.5 if name.endswith("down_proj") else sparsity
        assert linears[name]["sparsity"] == pytest.approx(sparsity, abs=1e-3)
        assert linears[name]["dense_bytes"] == 2 * shape[0] * shape[1]
    assert linears[f"{LAYER}.mlp.down_proj"]["pattern"] == "2:4"
    assert linears[f"{LAYER}.mlp.up_proj"]["pattern"] == "unstructured"
    assert linears["lm_head"]["pattern"] == ""
    dense = {name: linear["why"] for name, linear in linears.items() if linear["served"] == "dense"}
    assert dense == {
        f"{LAYER}.self_attn.o_proj": f"under {MIN_SPARSITY:.0%} zeros",
        "lm_head": "the output head is not pruned",
    }
    assert told["layout"] == "dense" and told["quantization"] is None
    assert told["other_bytes"] == 2 * (50 * 64 + 64)

    assert run("pack", model, tmp_path / "packed") == 0
    packed = inspect_checkpoint(tmp_path / "packed")
    assert packed.layout == "packed"
    for linear in packed.linears:
        other = linears[linear.name]
        assert (linear.sparsity, linear.pattern) == (other["sparsity"], other["pattern"])
        assert linear.packed_bytes == other["packed_bytes"]
    sizes = {
        name: sum(t.nbytes for key, t in load_file(tmp_path / "packed/model.safetensors").items()
                  if key.startswith(f"{name}.weight.tamp_"))
        for name in LINEARS
    }  # fmt: skip
    assert all(sizes[name] in (0, linears[name]["packed_bytes"]) for name in LINEARS)
    assert packed.stored_bytes < inspect_checkpoint(model).stored_bytes


def test_inspect_prints_a_table(
    model: Path, capsys: pytest.CaptureFixture[str], sparse_kernels: None
) -> None:
    assert run("inspect", model) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "vLLM with the plugin keeps 7 of 9 Linears packed" in text
    assert "2:4" in text and "(dense; Linears in bfloat16)" in text
    assert "dense, 1: under 20% zeros" in text


def test_inspect_groups_linears_by_layers_and_kind_at_80_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sparse_kernels: None
) -> None:
    tensors = {}
    for layer in range(12):
        prefix = f"model.language_model.layers.{layer}"
        sparsity = 0.1 if layer == 5 else 0.4 + 0.01 * layer
        tensors[f"{prefix}.self_attn.q_proj.weight"] = pruned((64, 64), sparsity)
        for expert in range(2):
            tensors[f"{prefix}.mlp.experts.{expert}.up_proj.weight"] = pruned((32, 64), 0.5)
        tensors[f"{prefix}.mlp.down_proj.weight"] = pruned((64, 32), 0.5)
        tensors[f"{prefix}.other.down_proj.weight"] = pruned((64, 32), 0.5)
    tensors["model.multi_modal_projector.linear_1.weight"] = pruned((64, 32), 0.0)
    folder = write(tmp_path / "model", tensors, **{CONFIG_KEY: config_marker("dense")})
    assert run("inspect", folder) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines), lines
    table = [line.split() for line in lines[: lines.index("")]]
    # A layer that is served otherwise is a row of its own.
    assert ["q_proj", "0-4,", "6-11", "64x64", "40-51%", "90.1", "kB", "55.2"] == next(
        row for row in table if row[0] == "q_proj"
    )[:8]
    assert ["q_proj", "5", "64x64", "10.0%", "8.19", "kB", "dense"] in table
    starts = [row[0] for row in table]
    assert starts.index("model.language_model.layers") < starts.index("q_proj")
    assert starts.index("others") > starts.index("experts.*.up_proj")
    # One name at two places of a layer is told apart.
    assert "mlp.down_proj" in starts and "other.down_proj" in starts

    assert run("inspect", folder, "--all") == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines), lines
    assert {name.removesuffix(".weight") for name in tensors} <= {
        line.split()[0] for line in lines if line
    }


def test_inspect_tells_which_kernels_this_machine_runs(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("inspect", model, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["kernels"]["path"] and told["kernels"]["why"] and told["gpus"] == []
    monkeypatch.setenv("TAMP_SPARSE_PATH", "torch")
    assert run("inspect", model) == 0
    assert "CPU kernels: torch, TAMP_SPARSE_PATH=torch" in capsys.readouterr().out


def _group(bits: int, kind: str, strategy: str, inputs: dict[str, Any] | None) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": kind, "strategy": strategy}
    return {"group_0": {"weights": weights, "input_activations": inputs}}


def _quantized(folder: Path, weights: dict[str, torch.Tensor], groups: Any, marker: bool) -> Path:
    config: dict[str, Any] = {CONFIG_KEY: config_marker("dense")} if marker else {}
    if groups is not None:
        config["quantization_config"] = {
            "quant_method": "compressed-tensors",
            "config_groups": groups,
        }
    tensors = {f"{LAYER}.mlp.up_proj.{name}": tensor for name, tensor in weights.items()}
    return write(folder, tensors, **config)


@pytest.mark.parametrize(
    ("dtype", "groups", "marker", "served"),
    [
        (torch.bfloat16, None, True, "packed"),
        (torch.bfloat16, None, False, "dense"),
        (torch.float8_e4m3fn, _group(8, "float", "channel", {"dynamic": True}), True, "packed"),
        (torch.float8_e4m3fn, _group(8, "float", "block", {"dynamic": True}), True, "dense"),
        (torch.float8_e4m3fn, _group(8, "float", "channel", None), True, "dense"),
        (torch.int8, _group(8, "int", "channel", {"symmetric": True}), True, "packed"),
        (torch.int8, _group(8, "int", "channel", {"symmetric": False}), True, "packed"),
        (torch.int8, _group(8, "int", "group", {"symmetric": True}), True, "dense"),
    ],
)
def test_quantized_linears(
    tmp_path: Path,
    dtype: torch.dtype,
    groups: dict[str, Any] | None,
    marker: bool,
    served: str,
    sparse_kernels: None,
) -> None:
    weight = (torch.randn(64, 64) * (torch.rand(64, 64) > 0.5) * 9).to(dtype)
    folder = _quantized(tmp_path / "model", {"weight": weight}, groups, marker)
    (linear,) = inspect_checkpoint(folder).linears
    assert linear.served == served, linear.why


@pytest.mark.parametrize(
    ("dtype", "sparsities", "served"),
    [
        (torch.bfloat16, (0.1, 0.5, 0.1), "packed"),  # all of a layer together
        (torch.bfloat16, (0.1, 0.2, 0.1), "dense"),
        (torch.int8, (0.5, 0.5, 0.5), "dense"),
    ],
)
def test_experts_of_a_layer_are_judged_together(
    tmp_path: Path, dtype: torch.dtype, sparsities: tuple[float, ...], served: str
) -> None:
    config: dict[str, Any] = {CONFIG_KEY: config_marker("dense", {f"{LAYER}.o_proj": 1})}
    if dtype == torch.int8:
        groups = _group(8, "int", "channel", {"symmetric": True})
        config["quantization_config"] = {
            "quant_method": "compressed-tensors",
            "config_groups": groups,
        }
    weights = {
        f"{LAYER}.mlp.experts.{number}.{part}.weight": (9 * pruned((40, 50), sparsity)).to(dtype)
        for number, sparsity in enumerate(sparsities)
        for part in ("gate_proj", "down_proj")
    }
    marked = torch.ones(1, 1).bfloat16()
    folder = write(tmp_path / "model", weights | {f"{LAYER}.o_proj.weight": marked}, **config)
    experts = [linear for linear in inspect_checkpoint(folder).linears if "experts" in linear.name]
    assert {linear.served for linear in experts} == {served}, experts[0].why


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    ("size", "served"), [(32, "packed"), (128, "packed"), (16, "dense"), (-1, "packed")]
)
def test_int4_linears(
    tmp_path: Path, size: int, served: str, symmetric: bool, sparse_kernels: None
) -> None:
    rows, columns = 20, 256
    generator = torch.Generator().manual_seed(size)
    codes = torch.randint(0, 16, (rows, columns), generator=generator)
    groups = 1 if size == -1 else columns // size
    zeros = torch.full((rows, groups), 8)
    if not symmetric:
        zeros = torch.randint(0, 16, (rows, groups), generator=generator)
    per_column = zeros.repeat_interleave(columns // groups, 1)
    codes = torch.where(torch.rand(rows, columns, generator=generator) < 0.5, per_column, codes)

    def words(codes: torch.Tensor) -> torch.Tensor:
        codes = torch.nn.functional.pad(codes, (0, -codes.shape[1] % 8))
        shifts = 4 * torch.arange(8)
        words = (codes.view(codes.shape[0], -1, 8) << shifts).sum(-1)
        return torch.where(words >= 2**31, words - 2**32, words).int()

    weights = {"weight_packed": words(codes), "weight_shape": torch.tensor([rows, columns])}
    if not symmetric:
        weights["weight_zero_point"] = words(zeros.t()).t().contiguous()
    group = _group(4, "int", "channel" if size == -1 else "group", None)
    group["group_0"]["weights"] |= {"group_size": size, "symmetric": symmetric}
    folder = _quantized(tmp_path / "model", weights, group, True)
    (linear,) = inspect_checkpoint(folder).linears
    assert linear.served == served, linear.why
    assert linear.shape == (rows, columns) and linear.dtype == "int4"
    assert linear.zeros == int((codes == per_column).sum())
    assert linear.packed_bytes < 0.8 * linear.dense_bytes


@pytest.mark.parametrize("given", ["environment", "config.json"])
def test_int4_with_int8_inputs_is_judged_by_its_own_measurements(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TAMP_SERVE", raising=False)
    ratios = {("int4", 0.0): 2.0, ("int4-int8", 0.25): 0.5}  # fast, and far too slow
    table = {(native.backend(), kind): {0.25: {1: r}} for (kind, _), r in ratios.items()}
    monkeypatch.setattr("tamp_modifier.sparse.choice.table", lambda: table)
    words = (0x88880000 + torch.zeros(64, 8, dtype=torch.int64)).int()  # half of the codes are 8
    weights = {"weight_packed": words, "weight_shape": torch.tensor([64, 64])}
    group = _group(4, "int", "channel", None)
    folder = _quantized(tmp_path / "model", weights, group, True)
    (linear,) = inspect_checkpoint(folder).linears
    assert linear.served == "packed", linear.why
    if given == "environment":
        monkeypatch.setenv("TAMP_INT4_ACTIVATIONS", "int8")
    else:
        config = json.loads((folder / "config.json").read_text())
        config[CONFIG_KEY]["activations"] = "int8"
        (folder / "config.json").write_text(json.dumps(config))
    (linear,) = inspect_checkpoint(folder).linears
    assert linear.served == "dense" and "0.50x the speed of the dense kernel" in linear.why


def test_inspect_tells_what_this_machine_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TAMP_SERVE", raising=False)
    weight = (torch.randn(64, 64) * (torch.rand(64, 64) > 0.5) * 9).to(torch.float8_e4m3fn)
    group = _group(8, "float", "channel", {"dynamic": True})
    folder = _quantized(tmp_path / "model", {"weight": weight}, group, True)
    assert run("inspect", folder) == 0
    assert "dense, 1: FP8 has no sparse kernel" in " ".join(capsys.readouterr().out.split())
    monkeypatch.setenv("TAMP_SERVE", "quick")
    assert run("inspect", folder) == 1
    assert "TAMP_SERVE is 'quick', allowed are auto, sparse, dense" in capsys.readouterr().err


@pytest.mark.parametrize(("keep", "size"), [(1, 4), (2, 4), (3, 8), (4, 8), (12, 16), (8, 32)])
def test_patterns_are_found(keep: int, size: int) -> None:
    weight = torch.randn(16, 96)
    order = torch.rand(16, 96 // size, size).argsort(-1)
    weight[(order >= keep).view(16, 96)] = 0
    found = find_pattern(weight)
    assert found == f"{size - keep}:{size}"


def test_patterns_are_not_seen_where_there_are_none() -> None:
    weight = torch.randn(64, 64)
    assert find_pattern(weight) == ""
    weight[torch.rand(64, 64) < 0.5] = 0
    assert find_pattern(weight) == "unstructured"
    assert find_pattern(torch.zeros(4, 8)) == "4:4"


def test_inspect_and_pack_agree_on_what_is_packed(tmp_path: Path) -> None:
    names = (
        "model.layers.0.mlp.up_proj", "model.layers.0.self_attn.k_proj", "lm_head", "wte",
        "model.layers.0.experts.0.w1", "vision.embeddings.position_embedding", "wte.proj",
        "vision.patch_embed.proj", "model.embed_tokens", "projector.linear_1",
    )  # fmt: skip
    tensors = {}
    for number, name in enumerate(names):
        for sparsity in (0.0, 0.19, 0.2, 0.5):
            prefix = f"s{round(100 * sparsity)}."
            dtype = (torch.bfloat16, torch.float64, torch.int32)[number // 8]
            tensors[f"{prefix}{name}.weight"] = pruned((5, 20), sparsity).to(dtype)
    tensors["s.up_proj.weight"] = pruned((7, 5), 0.2)  # 7 of 35: a fifth to the bit
    model = write(tmp_path / "model", tensors, **{CONFIG_KEY: config_marker("dense")})
    stats = pack_checkpoint(model, tmp_path / "packed")
    told = {linear.name for linear in inspect_checkpoint(model).linears if linear.packs}
    assert told == set(stats.linears) and "s.up_proj" in told and "s20.lm_head" not in told
    after = inspect_checkpoint(tmp_path / "packed").linears
    assert {linear.name for linear in after if linear.stored == "packed"} == told
    assert {linear.name for linear in after if linear.packs} == told


def test_a_range_of_zeros_has_ends_that_differ() -> None:
    shown = [share_text(*ends) for ends in ((0.5, 0.5), (0.498, 0.502), (0.45, 0.55))]
    assert shown == ["50.0%", "50%", "45-55%"]
