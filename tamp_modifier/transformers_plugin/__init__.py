"""transformers plugin: ``from_pretrained`` reads packed checkpoints.

transformers has a registry of quantizers and no entry point that would fill it, so `register` has
to be called: by the user (as `tamp_modifier.register_with_transformers`), by our commands, or by
the import of TAMPModifier. ``import tamp_modifier`` calls `register_if_imported`: it registers at
once where transformers is imported already, and otherwise neither imports it nor waits for it.
"""

from __future__ import annotations

import sys
import warnings


def register() -> None:
    """Let ``from_pretrained`` of transformers read packed checkpoints; idempotent.

    The order in which transformers and tamp_modifier are imported does not matter.

    Raises:
        ImportError: transformers is not installed, or lacks what a quantizer needs; says what.
    """
    from tamp_modifier.upstream.check import require
    from tamp_modifier.upstream.names import QUANTIZERS

    require(QUANTIZERS)
    from tamp_modifier.transformers_plugin.quantizer import register_quantizers

    register_quantizers()


def register_if_imported() -> None:
    """Register if transformers is imported; a transformers that lacks names is left alone."""
    if "transformers" not in sys.modules:
        return
    try:
        register()
    except ImportError as error:
        warnings.warn(f"transformers will not load packed checkpoints: {error}", stacklevel=2)
