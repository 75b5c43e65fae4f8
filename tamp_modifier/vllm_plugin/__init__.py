"""vLLM plugin: checkpoints pruned with tamp-modifier stay sparse in memory.

vLLM finds `register` through the entry point group ``vllm.general_plugins``; nothing has to be put
on the command line. Imports vllm and `tamp_modifier.sparse` only, and nothing at all until
`register` runs.
"""

from __future__ import annotations

QUANTIZATION = "tamp_sparse"
"""The name in vLLM; with ``--quantization tamp_sparse`` a pruned model needs no marker."""


def register() -> None:
    """Tell vLLM about the method; harmless when called again, as vLLM does in every process."""
    from tamp_modifier.sparse.amx import request_amx

    request_amx()  # vLLM's attention uses tiles, and no dense Linear asks for them
    from vllm.model_executor.layers.quantization import (
        QUANTIZATION_METHODS,
        register_quantization_config,
    )

    if QUANTIZATION in QUANTIZATION_METHODS:
        return
    from tamp_modifier.vllm_plugin.config import TampSparseConfig

    register_quantization_config(QUANTIZATION)(TampSparseConfig)
