"""What is patched when: one function when TAMPModifier is imported, the rest when it is used."""

from __future__ import annotations

import subprocess
import sys

CODE = """
from llmcompressor.entrypoints.oneshot import Oneshot
from llmcompressor.modifiers.gptq import base
from llmcompressor.pipelines.cache import IntermediatesCache
from llmcompressor.pipelines.sequential import pipeline
from llmcompressor.pipelines.sequential.helpers import SequentialTracer

def patchable():
    return {
        "run": Oneshot.apply_recipe_modifiers,
        "batch": base.prepare_batch,
        "quantize": base.quantize_weight,
        "pin": IntermediatesCache.pin_memory,
        "fill": IntermediatesCache.from_dataloader.__func__,
        "trace": pipeline.trace_subgraphs,
        "proxy": SequentialTracer.create_proxy,
        "arg": SequentialTracer.create_arg,
    }

before = patchable()
import tamp_modifier.modifier
print(sorted(name for name, function in patchable().items() if function is not before[name]))
from tamp_modifier.zeros.keep import guard_zeros
guard_zeros()
once = patchable()
guard_zeros()
assert once == patchable()
print(sorted(name for name, function in patchable().items() if function is not before[name]))
"""


def test_importing_the_modifier_patches_only_what_is_too_late_afterwards() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["['run']", "['batch', 'pin', 'quantize', 'run']"]
