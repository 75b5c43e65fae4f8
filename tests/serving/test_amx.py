"""A model whose Linears are all sparse answers text first, on processors with and without AMX."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

# A fork as vLLM makes one: after `register`, with what it remembers.
FORKED = """
import os
from tamp_modifier.sparse.amx import request_amx
from tamp_modifier.vllm_plugin import register
register()
if os.fork() == 0:
    os._exit(0 if request_amx() == ("amx_tile" in open("/proc/cpuinfo").read()) else 1)
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


def test_amx_is_granted_exactly_where_the_processor_has_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=300
    )
    assert done.stdout.split()[-1:] == ["0"], done.stderr


def test_the_first_request_of_a_process_is_text_alone(served: dict[str, dict[str, Any]]) -> None:
    """The first engine of that process has only Linears that are sparse, and reads only text."""
    first = next(iter(served))
    assert first == "llama" and "error" not in served[first]
    assert all(output["tokens"] for output in served[first]["outputs"])
