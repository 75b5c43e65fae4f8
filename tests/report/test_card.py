"""The model card: what it says, what it leaves out, and whose card stays as it is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from tamp_modifier.checkpoint.pack import pack_checkpoint, unpack_checkpoint
from tamp_modifier.messages import size_text
from tamp_modifier.report.card import CARD_FILE, Origin, write_card
from tamp_modifier.report.model import REPORT_FILE, Recovery
from tests.report.test_report import make_report

UP = "model.layers.0.mlp.up_proj.weight"


def front_matter(card: str) -> dict[str, Any]:
    start, middle, _ = card.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(middle)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "pruned"
    folder.mkdir()
    weight = torch.randn(64, 64).bfloat16()
    weight[:, ::2] = 0
    save_file({UP: weight}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder


def test_the_card_names_base_method_calibration_size_and_versions(folder: Path) -> None:
    settings = {"preset": "best", "score": "sparsegpt", "ignore": [], "report_path": "/secret/r"}
    versions = {"tamp-modifier": "0.2.0", "torch": "2.13.0"}
    report = replace(make_report(), settings=settings, versions=versions, seed=7)
    origin = Origin("owner/Model-7B", Path("/home/somebody/chats.jsonl"), own_answers=True)
    card = write_card(folder, report, origin).read_text()
    found = front_matter(card)
    assert found["base_model"] == "owner/Model-7B"
    assert found["library_name"] == "transformers" and "tamp-modifier" in found["tags"]
    assert "# Model-7B, pruned" in card
    assert (
        f"{report.reached_sparsity:.1%} zeros in its {len(report.linears)} pruned Linears" in card
    )
    assert "| preset | `best` |" in card and "| score | `sparsegpt` |" in card
    assert "ignore" not in card and "secret" not in card and "somebody" not in card
    assert f"{report.samples} samples with " in card and "seed 7, from `chats.jsonl`." in card
    assert "The base model wrote the answers itself." in card
    assert "vllm serve ./FOLDER" in card and "in one file, stored with its zeros." in card
    assert "| torch | `2.13.0` |" in card


def test_a_base_model_in_a_folder_is_named_without_its_path(folder: Path) -> None:
    base = folder.parent / "my model"
    base.mkdir()
    for given in (str(base), str(base) + "/", str(folder.parent / "gone")):
        card = write_card(folder, make_report(), Origin(given)).read_text()
        assert "base_model" not in front_matter(card)
        assert str(folder.parent) not in card
    assert "`gone` with" in card


def test_names_cannot_break_out_of_the_card(folder: Path) -> None:
    evil = "a`b|c\n---\nlicense: none"
    report = replace(make_report(), settings={"preset": evil}, versions={"torch": evil})
    card = write_card(folder, report, Origin(f"/x/{evil}", Path(f"/x/{evil}"))).read_text()
    assert "a'b'c --- license: none" in card and "\nlicense" not in card and "a`b" not in card
    assert set(front_matter(card)) == {"library_name", "tags"}


def test_a_recovery_has_its_settings_and_what_it_gained(folder: Path) -> None:
    curve = [
        {"seconds": 0.0, "tokens": 0, "samples": 0, "loss": 0.8},
        {"seconds": 90.0, "tokens": 12345, "samples": 40, "loss": 0.2},
    ]
    settings = {"train": "kept", "minutes": None, "tokens": 12000, "scheme": "W4A16"}
    recovery = Recovery(settings, 1e-4, 1000, curve, 0.2, "12000 tokens are over")
    report = replace(make_report(), recovery=recovery)
    origin = Origin("owner/dense", Path("/data/training.jsonl"), 40)
    card = write_card(folder, report, origin).read_text()
    assert "taught 1,000 weights, in 12,345 tokens and 1.5 minutes" in card
    assert "held-out samples fell from 0.8 to 0.2 nats a token." in card
    assert "Data: 40 samples of `training.jsonl`." in card
    assert "| scheme | `W4A16` |" in card and "minutes |" not in card
    report = replace(report, recovery=replace(recovery, curve=curve[:1], best=0.8))
    card = write_card(folder, report, origin).read_text()
    assert "did not fall, so the weights from before were kept; it is 0.8 nats a token." in card
    assert "distilled" in front_matter(card)["tags"]


def test_packing_renews_what_our_card_says_of_the_storage(folder: Path, tmp_path: Path) -> None:
    write_card(folder, make_report(), Origin("owner/dense", Path("chats.jsonl")))
    before = (folder / CARD_FILE).read_text()
    pack_checkpoint(folder, tmp_path / "packed")
    packed = (tmp_path / "packed" / CARD_FILE).read_text()
    assert "register_with_transformers()" in packed and "stored packed" in packed
    assert front_matter(packed) == front_matter(before) and "`chats.jsonl`" in packed
    unpack_checkpoint(tmp_path / "packed", tmp_path / "dense")
    assert (tmp_path / "dense" / CARD_FILE).read_text() == before


def test_packing_keeps_a_card_of_somebody_else(folder: Path, tmp_path: Path) -> None:
    (folder / CARD_FILE).write_bytes(b"# Mine\r\n\xff")
    pack_checkpoint(folder, tmp_path / "packed")
    assert (tmp_path / "packed" / CARD_FILE).read_bytes() == b"# Mine\r\n\xff"


@pytest.mark.parametrize("report", ["ours", "none", "damaged"])
def test_packing_gives_a_card_to_a_folder_without_one(
    folder: Path, tmp_path: Path, report: str
) -> None:
    if report == "ours":
        make_report().save(folder / REPORT_FILE)
    elif report == "damaged":
        (folder / REPORT_FILE).write_text("{")
    pack_checkpoint(folder, tmp_path / "packed")
    card = (tmp_path / "packed" / CARD_FILE).read_text()
    assert "# Pruned model" in card and "stored packed" in card
    assert ("no report says how it was pruned" in card) == (report != "ours")


def test_a_quantized_checkpoint_names_its_quantization(folder: Path, tmp_path: Path) -> None:
    quantization: dict[str, Any] = {"quant_method": "compressed-tensors", "format": "int-quantized"}
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}
    inputs = {"num_bits": 8, "type": "int", "strategy": "token"}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    quantization["config_groups"] = {"group_0": group, "group_1": {"targets": ["Linear"]}}
    (folder / "config.json").write_text(json.dumps({"quantization_config": quantization}))
    told = (
        "Quantized: `compressed-tensors`, `int-quantized`; "
        "weights `int4` in groups of 128, inputs `int8` by token."
    )
    plain = write_card(folder, None).read_text()
    assert told in plain and "transformers loads it, where compressed-tensors is" in plain
    pack_checkpoint(folder, tmp_path / "packed")
    packed = (tmp_path / "packed" / CARD_FILE).read_text()
    assert told in packed and "transformers loads it after `tamp unpack`" in packed
    assert "register_with_transformers" not in packed


def test_data_in_the_current_folder_have_its_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    report = replace(make_report(), settings={"score": "wanda"})
    assert "from `pruned`." in write_card(folder, report, Origin(data=Path())).read_text()


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1500, "1.5 kB"),
        (13_482_080, "13.5 MB"),
        (734_000_000, "734 MB"),
        (17_000_000_000, "17 GB"),
        (470_500_000_000, "470 GB"),
    ],
)
def test_sizes_have_the_unit_that_fits(size: int, text: str) -> None:
    assert size_text(size) == text
