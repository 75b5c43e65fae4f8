"""The marker in config.json, and the formats of compressed-tensors that nothing reads any more."""

from __future__ import annotations

import pytest
import torch

from tamp_modifier import sparse

NAME = "model.layers.0.mlp.up_proj"


def bitmask_of(kept: torch.Tensor) -> torch.Tensor:
    """uint8 [rows, ceil(columns / 8)], lowest bit first, as compressed-tensors packed it."""
    rows, columns = kept.shape
    padded = torch.zeros(rows, -(-columns // 8) * 8, dtype=torch.int64)
    padded[:, :columns] = kept
    return (padded.view(rows, -1, 8) * 2 ** torch.arange(8)).sum(-1).to(torch.uint8)


def legacy_bitmask(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    kept = weight != 0
    counts = kept.sum(-1)
    return {
        f"{NAME}.shape": torch.tensor(weight.shape),
        f"{NAME}.compressed": weight[kept],
        f"{NAME}.bitmask": bitmask_of(kept),
        f"{NAME}.row_offsets": counts.cumsum(0) - counts,
    }


def legacy_24(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    kept = weight != 0
    return {
        f"{NAME}.shape": torch.tensor(weight.shape),
        f"{NAME}.compressed": weight[kept].view(weight.shape[0], -1),
        f"{NAME}.bitmask": bitmask_of(kept),
    }


def random_weight(shape=(6, 27), dtype=torch.bfloat16):
    torch.manual_seed(0)
    return ((torch.rand(shape) + 1) * (torch.rand(shape) > 0.4)).to(dtype)


def weight_24(shape=(6, 32)):
    torch.manual_seed(0)
    weight = torch.rand(shape).half() + 1
    order = torch.rand(shape[0], shape[1] // 4, 4).argsort(-1)
    return weight * (order < 2).view(shape)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float8_e4m3fn, torch.int8])
def test_sparse_bitmask_is_read(dtype):
    weight = random_weight(dtype=torch.float32).to(dtype)
    bits = weight.view(torch.int8) if dtype.itemsize == 1 else weight
    tensors = legacy_bitmask(bits)
    tensors[f"{NAME}.compressed"] = tensors[f"{NAME}.compressed"].view(dtype)
    back = sparse.read_bitmask(tensors, NAME)
    assert back.dtype == dtype
    assert torch.equal(back.float(), weight.float())


def test_sparse_24_bitmask_is_read():
    weight = weight_24()
    assert torch.equal(sparse.read_24_bitmask(legacy_24(weight), NAME), weight)


@pytest.mark.parametrize(
    "part, change, message",
    [
        ("shape", lambda t: t + 8, "bitmask must be"),
        ("shape", lambda t: t[:1], "two sizes"),
        ("shape", lambda t: -t, ">= 0"),
        ("compressed", lambda t: t[:-1], "are stored"),
        ("compressed", lambda t: t.double(), "not known"),
        ("bitmask", lambda t: t[:-1], "bitmask must be"),
        ("bitmask", lambda t: t | 0x80, "right of the last column"),
        ("row_offsets", lambda t: t + 1, "row_offsets"),
    ],
)
def test_damaged_bitmask_tensors_are_refused(part, change, message):
    tensors = legacy_bitmask(random_weight())
    tensors[f"{NAME}.{part}"] = change(tensors[f"{NAME}.{part}"])
    with pytest.raises(ValueError, match=message) as error:
        sparse.read_bitmask(tensors, NAME)
    assert NAME in str(error.value)


def test_damaged_24_tensors_are_refused():
    tensors = legacy_24(weight_24())
    moved = tensors[f"{NAME}.bitmask"].clone()
    moved[0, 0] = 0x17
    with pytest.raises(ValueError, match="2 of 4"):
        sparse.read_24_bitmask({**tensors, f"{NAME}.bitmask": moved}, NAME)
    cut = tensors[f"{NAME}.compressed"][:, :-1]
    with pytest.raises(ValueError, match="compressed must be"):
        sparse.read_24_bitmask({**tensors, f"{NAME}.compressed": cut}, NAME)
    del tensors[f"{NAME}.shape"]
    with pytest.raises(ValueError, match="lacks"):
        sparse.read_24_bitmask(tensors, NAME)


def test_the_marker_is_written_and_read():
    marker = sparse.config_marker("packed", {NAME: 12})
    assert sparse.read_marker({sparse.CONFIG_KEY: marker}) == marker
    assert sparse.read_marker({}) is None
    assert sparse.read_marker({sparse.CONFIG_KEY: {"format": "float-quantized"}}) is None
    assert sparse.config_marker("dense")["layout"] == "dense"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"version": 2}, "version"),
        ({"layout": "dens"}, "dense, packed"),
        ({"linears": [NAME]}, "linears"),
        ({"linears": {NAME: -1}}, "linears"),
        ({"linears": None}, "needs linears"),
    ],
)
def test_a_wrong_marker_is_refused(change, message):
    marker = {**sparse.config_marker("packed", {NAME: 12}), **change}
    with pytest.raises(ValueError, match=message):
        sparse.read_marker({sparse.CONFIG_KEY: marker})
