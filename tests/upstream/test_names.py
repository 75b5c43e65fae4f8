"""Every name of llm-compressor, transformers and loguru that is relied on is there, or is named."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from llmcompressor.modifiers.gptq import base
from llmcompressor.pipelines.sequential import pipeline

from tamp_modifier import TAMPModifier
from tamp_modifier.upstream.check import Name, UpstreamChanged, problem, problems, require
from tamp_modifier.upstream.names import LLM_COMPRESSOR, LOGURU, QUANTIZERS, VIDEOS
from tests.architectures.models import build
from tests.running import prune

ALL = (*LLM_COMPRESSOR, *VIDEOS, *QUANTIZERS, *LOGURU)


@pytest.mark.parametrize("name", ALL, ids=str)
def test_upstream_has_the_name(name: Name) -> None:
    assert problem(name) == ""
    assert name.why and name.seen


def test_no_name_is_listed_twice() -> None:
    places = [str(name) for name in ALL]
    assert sorted(places) == sorted(set(places))


@pytest.fixture
def check_again() -> Iterator[None]:
    """Have names that were checked before be checked anew."""
    require.cache_clear()
    yield
    require.cache_clear()


@pytest.mark.usefixtures("check_again")
def test_a_missing_name_is_named_before_any_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delattr(pipeline, "trace_subgraphs")
    monkeypatch.setattr(base, "prepare_batch", lambda modules: None)
    model, batches, _ = build("llava_llama")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(UpstreamChanged) as error:
        prune(model, batches, TAMPModifier(), tmp_path)
    assert str(error.value) == (
        "tamp-modifier relies on names that are missing: llmcompressor 0.14.0.1 lacks "
        "llmcompressor.modifiers.gptq.base.prepare_batch(batch, ...), which is now (modules), "
        "llmcompressor.pipelines.sequential.pipeline.trace_subgraphs "
        "(tested with llmcompressor 0.14.0.1)"
    )
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


GONE = """
import sys
from importlib.abc import MetaPathFinder

class Gone(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "llmcompressor.modeling.moe.gpt_oss":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Gone())
try:
    from tamp_modifier import TAMPModifier
except ImportError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.slow
def test_a_module_that_moved_is_named_when_the_modifier_is_imported() -> None:
    done = subprocess.run([sys.executable, "-c", GONE], capture_output=True, text=True, timeout=600)
    (line,) = (x for x in done.stdout.splitlines() if x.startswith("UpstreamChanged"))
    assert "llmcompressor.modeling.moe.gpt_oss" in line and "tested with llmcompressor" in line


class Example:
    """What the signatures below are compared with."""

    declared: int

    def __init__(self) -> None:
        self.made = 1

    def method(self, first: Any, second: Any, third: Any = None, *, word: Any = None) -> None: ...

    def anything(self, *args: Any, **kwargs: Any) -> None: ...


@pytest.mark.parametrize(
    ("attribute", "signature", "right"),
    [
        ("declared", "", True),
        ("made", "", True),
        ("absent", "", False),
        ("method", "(self, first, second)", True),
        ("method", "(self, first, ...)", True),
        ("method", "(self, first, *, second, word)", True),
        ("method", "(self, first)", False),  # second needs a value
        ("method", "(self, second, first)", False),
        ("method", "(self, first, second, *, other)", False),
        ("method", "(self, first, second, third, fourth)", False),
        ("anything", "(self, first, *, other)", True),
        ("made", "()", False),
    ],
)
def test_attributes_and_signatures(attribute: str, signature: str, right: bool) -> None:
    name = Name(f"{__name__}:Example", attribute, signature, "1", "a test")
    assert (problem(name) == "") == right, inspect.signature(Example.method)


def test_a_package_that_is_not_installed_is_told() -> None:
    found = problems([Name("no_such_package.inside", "name", "", "1.2", "a test")])
    assert found.startswith("no_such_package (not installed) lacks no_such_package.inside.name")
    assert found.endswith("(tested with no_such_package 1.2)")
