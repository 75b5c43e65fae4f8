"""Checkpoints for the serving tests, and the answers of stock vLLM and of the plugin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tamp_modifier.checkpoint.pack import pack_checkpoint
from tamp_modifier.demo.evaluation import evaluation_samples
from tamp_modifier.demo.pictures import draw
from tamp_modifier.demo.questions import PICTURE_TASKS, TEXT_TASKS
from tests.serving import models
from tests.serving.harness import run_jobs

TEXTS = [
    "<bos> <user> what is red ? <assistant>",
    "<bos> <user> how many blue circles are there ? <assistant>",
    "<bos> <user> a <assistant>",
]
FORCED = {"TAMP_SERVE": "sparse"}
"""Every sparse kernel is used, however fast it is on this machine."""
QUESTIONS = 100
"""With a picture, and as many without."""
PACKED_STEP = 10
"""Each tenth of them is asked again with packed files, whose weights are the same in memory."""


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
def questions(work: Path) -> list[dict[str, str]]:
    """Questions to the demo model: its evaluation's, with a picture and without."""
    found = []
    for tasks in (PICTURE_TASKS, TEXT_TASKS):
        samples = [evaluation_samples(task, -(-QUESTIONS // len(tasks))) for task in tasks]
        for sample in [s for group in zip(*samples, strict=True) for s in group][:QUESTIONS]:
            entry = {"question": sample.question.question}
            if sample.scene is not None:
                entry["picture"] = str(work / f"picture{len(found)}.png")
                draw(sample.scene).save(entry["picture"])
            found.append(entry)
    return found


@pytest.fixture(scope="session")
def checkpoints(work: Path) -> dict[str, Path]:
    """Pruned checkpoints by name; those that end with ``-packed`` are packed on disk."""
    folders = {
        "llama": models.llama(work / "llama"),
        "qwen": models.qwen(work / "qwen"),
        "box": models.box(work / "box"),
    }
    folders["fp8"] = models.fp8(folders["llama"], work / "fp8")
    folders["fp8-tensor"] = models.fp8(folders["llama"], work / "fp8-tensor", "tensor")
    folders["fp8-repeated"] = models.fp8(folders["llama"], work / "fp8-repeated", "repeated")
    folders["int8"] = models.int8(folders["llama"], work / "int8")
    folders["int4"] = models.int4(folders["llama"], work / "int4")
    for name in ("llama", "qwen", "box", "fp8"):
        pack_checkpoint(folders[name], work / f"{name}-packed")
        folders[f"{name}-packed"] = work / f"{name}-packed"
    return folders


def _prompts(name: str, questions: list[dict[str, str]]) -> list[Any]:
    if not name.startswith("box"):
        return list(TEXTS)
    prompts: list[Any] = []
    for entry in questions[:: PACKED_STEP if name == "box-packed" else 1]:
        image = "<image> " if "picture" in entry else ""
        text = f"<bos> <user> {image}{entry['question']} <assistant>"
        prompts.append(entry | {"text": text} if image else text)
    return prompts


def _answers(
    names: list[str],
    checkpoints: dict[str, Path],
    questions: list[dict[str, str]],
    folder: Path,
    plugin: bool,
) -> dict[str, dict[str, Any]]:
    jobs = [{"model": str(checkpoints[n]), "prompts": _prompts(n, questions)} for n in names]
    return dict(zip(names, run_jobs(jobs, folder, plugin, environ=FORCED), strict=True))


@pytest.fixture(scope="session")
def stock(
    checkpoints: dict[str, Path], questions: list[dict[str, str]], work: Path
) -> dict[str, dict[str, Any]]:
    """What stock vLLM, without the plugin, makes of each dense-with-zeros checkpoint."""
    names = ["llama", "qwen", "box", "fp8", "fp8-repeated", "int8", "int4"]
    return _answers(names, checkpoints, questions, work / "stock", plugin=False)


@pytest.fixture(scope="session")
def served(
    checkpoints: dict[str, Path], questions: list[dict[str, str]], work: Path
) -> dict[str, dict[str, Any]]:
    """What vLLM with the plugin makes of all checkpoints."""
    names = [name for name in checkpoints if name != "fp8-repeated"]
    return _answers(names, checkpoints, questions, work / "served", plugin=True)
