"""Every Python block of the pages in docs/ runs, with the names that its page takes for granted."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tamp_modifier import TAMPModifier
from tamp_modifier.checkpoint.pack import pack_checkpoint
from tamp_modifier.data import Encoded
from tamp_modifier.demo.evaluation import MODEL_FOLDER, load_processor
from tamp_modifier.demo.evaluation import load_model as load_demo_model

DOCS = Path(__file__).parents[1] / "docs"
ELSEWHERE = {
    "extending.md": "tests/test_extending.py",
    "getting-started.md": "tests/test_getting_started.py",
    "sparse-format.md": "tests/sparse/test_format_page.py",
}
"""Pages whose blocks have tests of their own."""

SIZES: dict[str, Any] = {
    "vocab_size": 90,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}
Names = dict[str, Any]


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.M | re.S)


def pruned_model(folder: Path) -> Any:
    model = load_demo_model(dtype=torch.bfloat16)
    for name, weight in model.named_parameters():
        if "language_model" in name and "proj" in name:
            weight.data[:, ::2] = 0
    return model


def quantization(folder: Path) -> Names:
    return {"model": pruned_model(folder), "torch": torch}


def serving(folder: Path) -> Names:
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[:, ::2] = 0
    model.save_pretrained(folder / "dense")
    pack_checkpoint(folder / "dense", folder / "packed-model")
    return {}


def data(folder: Path) -> Names:
    from llmcompressor import oneshot

    turns = (("user", "what is red ?"), ("assistant", "ring"))
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    model = load_demo_model()
    model.config.save_pretrained(folder)
    return {
        "MODEL": MODEL_FOLDER,
        "rows": [row, row],
        "processor": load_processor(),
        "model": model,
        "oneshot": oneshot,
        "recipe": TAMPModifier(sparsity=0.5, selection="all"),
    }


def gptq(folder: Path) -> Names:
    from tamp_modifier.data import Collator, make_loader

    names = data(folder)
    return {**names, "loader": make_loader(names["rows"], Collator(names["processor"]))}


def recovery(folder: Path) -> Names:
    torch.manual_seed(0)
    teacher = LlamaForCausalLM(LlamaConfig(**SIZES))
    student = LlamaForCausalLM(LlamaConfig(**SIZES))
    student.load_state_dict(teacher.state_dict())
    with torch.no_grad():
        student.model.layers[0].mlp.up_proj.weight[:, ::2] = 0
    samples = [Encoded(f"row {i}", {"input_ids": torch.randint(3, 90, (1, 6))}) for i in range(8)]
    return {
        "student": student,
        "teacher": teacher,
        "processor": load_processor(),
        "samples": samples,
        "placeholders": {},
    }


PAGES: dict[str, Callable[[Path], Names]] = {
    "quantization.md": quantization,
    "serving.md": serving,
    "data.md": data,
    "gptq-masks.md": gptq,
    "recovery.md": recovery,
}
SCRIPTS = {"scale.md"}
"""Pages whose blocks are whole programs or load a model by its name; see below."""


def test_every_page_with_python_has_its_blocks_run() -> None:
    with_blocks = {page.name for page in DOCS.glob("*.md") if blocks(page)}
    assert with_blocks == {*PAGES, *SCRIPTS, *ELSEWHERE}
    assert all((DOCS.parent / test).is_file() for test in ELSEWHERE.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_the_blocks_of_a_page_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = PAGES[name](tmp_path)
    for block in blocks(DOCS / name):
        exec(block, names)


BEFORE = """
import warnings; warnings.filterwarnings("ignore")
from llmcompressor import oneshot
from transformers import AutoModelForImageTextToText
from tamp_modifier import TAMPModifier
from tamp_modifier.data import Collator, make_loader
from tamp_modifier.demo.evaluation import calibration_dataloader, load_processor

MODEL_ID = {model!r}
processor = load_processor()
samples = [{{"messages": [{{"role": "user", "content": f"what is {{colour}} ?"}},
    {{"role": "assistant", "content": "ring"}}]}} for colour in ("red", "blue")]
"""


@pytest.mark.slow
def test_the_programs_of_the_page_on_scale_run(tmp_path: Path) -> None:
    program, load = blocks(DOCS / "scale.md")
    # As the comment in it says for machines without an accelerator.
    call, alternative = "init_dist()", 'dist.init_process_group("gloo")'
    assert f"{call}  # one process an accelerator; without one: {alternative}" in program
    text = BEFORE.format(model=str(MODEL_FOLDER)) + program.replace(f"\n{call}", f"\n{alternative}")
    (tmp_path / "prune.py").write_text(text)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    run([*torchrun, "2", "prune.py"], tmp_path)
    assert (tmp_path / "pruned" / "model.safetensors").is_file()
    run([sys.executable, "-c", BEFORE.format(model=str(MODEL_FOLDER)) + load], tmp_path)


def run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_zeros_of_a_loaded_model_stay_without_the_modifier_being_imported(tmp_path: Path) -> None:
    """As docs/quantization.md says: `keep_zeros` alone guards what follows, here GPTQ."""
    pruned_model(tmp_path).save_pretrained(tmp_path / "pruned")
    program = f"""
import warnings; warnings.filterwarnings("ignore")
import torch
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier
from tamp_modifier.demo.evaluation import calibration_dataloader, load_processor
from tamp_modifier.zeros.keep import keep_zeros
from transformers import AutoModelForImageTextToText

model = AutoModelForImageTextToText.from_pretrained({str(tmp_path / "pruned")!r})
names = keep_zeros(model)
pruned = {{name: model.get_submodule(name).weight == 0 for name in names}}
ignore = ["lm_head", "re:.*vision_tower.*", "re:.*multi_modal_projector.*"]
oneshot(model=model, processor=load_processor(), dataset=calibration_dataloader(2),
        recipe=GPTQModifier(targets="Linear", scheme="W4A16", ignore=ignore))
lost = sum(int((model.get_submodule(n).weight[zero] != 0).sum()) for n, zero in pruned.items())
assert names and lost == 0, lost
"""
    run([sys.executable, "-c", program], tmp_path)
