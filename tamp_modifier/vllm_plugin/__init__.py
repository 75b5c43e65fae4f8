"""vLLM plugin: checkpoints pruned with tamp-modifier stay sparse in memory.

vLLM finds `register` through the entry point group ``vllm.general_plugins``; nothing has to be put
on the command line. Imports vllm and `tamp_modifier.sparse` only, and nothing at all until
`register` runs.
"""

from __future__ import annotations

import logging

from tamp_modifier.vllm_plugin.names import QUANTIZATION, VLLM

__all__ = ["QUANTIZATION", "register"]


def register() -> None:
    """Tell vLLM about the method; harmless when called again, as vLLM does in every process.

    Where vLLM lacks a name that the plugin relies on, one line of the log tells so and vLLM goes on
    without the plugin: it serves pruned checkpoints dense and refuses packed ones.
    """
    from tamp_modifier.sparse.amx import request_amx
    from tamp_modifier.upstream.check import problems

    request_amx()  # vLLM's attention uses tiles, and no dense Linear asks for them
    missing = problems(VLLM)
    if missing:
        # Below "vllm", of which vLLM shows the log; its own `init_logger` may be what is missing.
        logger = logging.getLogger("vllm.plugins.tamp_sparse")
        logger.error("tamp-modifier does not serve sparse weights: %s", missing)
        return
    from vllm.model_executor.layers.quantization import (
        QUANTIZATION_METHODS,
        register_quantization_config,
    )

    if QUANTIZATION in QUANTIZATION_METHODS:
        return
    from tamp_modifier.vllm_plugin.config import TampSparseConfig

    register_quantization_config(QUANTIZATION)(TampSparseConfig)
