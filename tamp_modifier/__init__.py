"""TAMP pruning of multimodal LLMs, as a Modifier for llm-compressor.

``import tamp_modifier`` loads neither llm-compressor nor transformers nor vLLM and works where they
are absent. `prune` takes a model and data and returns the pruned model; it is what ``tamp prune``
calls. ``from tamp_modifier import TAMPModifier`` imports llm-compressor and registers this modifier
and `FittedGPTQModifier`, which YAML recipes need. After ``register_with_transformers()``
transformers loads packed checkpoints too.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from tamp_modifier import moved
from tamp_modifier.transformers_plugin import register as register_with_transformers
from tamp_modifier.transformers_plugin import register_if_imported

if TYPE_CHECKING:
    from tamp_modifier.fitted_gptq import FittedGPTQModifier
    from tamp_modifier.modifier import TAMPModifier
    from tamp_modifier.workflows.prune import prune

__version__ = "0.2.0.dev0"
__all__ = [
    "FittedGPTQModifier",
    "TAMPModifier",
    "__version__",
    "prune",
    "register_with_transformers",
]

_WITH_LLM_COMPRESSOR = {
    "FittedGPTQModifier": "modifier",  # which has zeros watched, too
    "TAMPModifier": "modifier",
    "prune": "workflows.prune",
}
"""Names that are imported when they are asked for, and their modules."""

register_if_imported()
moved.install(sys.modules[__name__])


def __getattr__(name: str) -> Any:
    if name not in _WITH_LLM_COMPRESSOR:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{_WITH_LLM_COMPRESSOR[name]}")
    except (ImportError, AttributeError) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing in ("llmcompressor", "compressed_tensors"):
            raise ImportError(
                f'{name} needs llm-compressor: pip install "tamp-modifier[compress]"'
            ) from error
        from tamp_modifier.upstream.names import require_llm_compressor

        require_llm_compressor()  # tells all that is missing, with versions
        raise
    return getattr(module, name)
