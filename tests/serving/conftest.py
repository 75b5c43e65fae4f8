"""Checkpoints for the serving tests, and the answers of stock vLLM and of the plugin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tamp_modifier.sparse.checkpoint import pack_checkpoint
from tests.serving import models
from tests.serving.harness import run_jobs

TEXTS = [
    "<bos> <user> what is red ? <assistant>",
    "<bos> <user> how many blue circles are there ? <assistant>",
    "<bos> <user> a <assistant>",
]
QUESTIONS = ["what is red ?", "how many ?"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests of this folder carry the marker `serving`."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.serving)


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the session."""
    return tmp_path_factory.mktemp("serving")


@pytest.fixture(scope="session")
def pictures(work: Path) -> list[Path]:
    """Two small pictures with different contents."""
    paths = []
    for index, colour in enumerate(((200, 40, 40), (40, 60, 220))):
        picture = Image.radial_gradient("L").resize((96, 96)).convert("RGB")
        paths.append(work / f"picture{index}.png")
        Image.blend(picture, Image.new("RGB", (96, 96), colour), 0.6).save(paths[-1])
    return paths


@pytest.fixture(scope="session")
def checkpoints(work: Path) -> dict[str, Path]:
    """Pruned checkpoints by name; those that end with ``-packed`` are packed on disk."""
    folders = {
        "llama": models.llama(work / "llama"),
        "qwen": models.qwen(work / "qwen"),
        "llava": models.llava(work / "llava"),
    }
    folders["fp8"] = models.fp8(folders["llama"], work / "fp8")
    folders["fp8-tensor"] = models.fp8(folders["llama"], work / "fp8-tensor", "tensor")
    folders["fp8-repeated"] = models.fp8(folders["llama"], work / "fp8-repeated", "repeated")
    folders["int8"] = models.int8(folders["llama"], work / "int8")
    folders["int4"] = models.int4(folders["llama"], work / "int4")
    for name in ("llama", "qwen", "llava", "fp8"):
        pack_checkpoint(folders[name], work / f"{name}-packed")
        folders[f"{name}-packed"] = work / f"{name}-packed"
    return folders


def _prompts(name: str, pictures: list[Path]) -> list[Any]:
    if not name.startswith("llava"):
        return list(TEXTS)
    asked = zip(QUESTIONS, pictures, strict=True)
    texts = [f"<bos> <user> {question} <assistant>" for question in QUESTIONS]
    return texts + [
        {"text": f"<bos> <user> <image> {text} <assistant>", "picture": str(path)}
        for text, path in asked
    ]


def _answers(
    names: list[str],
    checkpoints: dict[str, Path],
    pictures: list[Path],
    folder: Path,
    plugin: bool,
) -> dict[str, dict[str, Any]]:
    jobs = [{"model": str(checkpoints[n]), "prompts": _prompts(n, pictures)} for n in names]
    return dict(zip(names, run_jobs(jobs, folder, plugin), strict=True))


@pytest.fixture(scope="session")
def stock(
    checkpoints: dict[str, Path], pictures: list[Path], work: Path
) -> dict[str, dict[str, Any]]:
    """What stock vLLM, without the plugin, makes of each dense-with-zeros checkpoint."""
    names = ["llama", "qwen", "llava", "fp8", "fp8-repeated", "int8", "int4"]
    return _answers(names, checkpoints, pictures, work / "stock", plugin=False)


@pytest.fixture(scope="session")
def served(
    checkpoints: dict[str, Path], pictures: list[Path], work: Path
) -> dict[str, dict[str, Any]]:
    """What vLLM with the plugin makes of all checkpoints."""
    names = [name for name in checkpoints if name != "fp8-repeated"]
    return _answers(names, checkpoints, pictures, work / "served", plugin=True)
