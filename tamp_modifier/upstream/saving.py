"""Completes the config.json of a pruned model that was saved, and sets the modes of its files.

Three things are wrong with what llm-compressor writes:

- It may put the original config.json in the place of the one that was saved, and with it goes the
  marker by which vLLM serves the zeros sparse.
- The Linears that are not quantized are listed in ``quantization_config.ignore`` by their names in
  the checkpoint. vLLM goes by these. transformers goes by the names of its modules, which differ
  for multimodal models, and so takes their towers for quantized: the logits become NaN. With both
  names in the list both load it.
- The experts of a mixture of experts have names that few architectures read: see
  `upstream.experts`. What was written is therefore compared with what the architecture reads.
"""

from __future__ import annotations

import json
import os
import weakref
from functools import wraps
from pathlib import Path
from typing import Any

from compressed_tensors.distributed import is_source_process
from compressed_tensors.quantization.utils import is_module_quantized
from torch import nn
from transformers import PreTrainedModel

from tamp_modifier.checkpoint.completeness import require_complete
from tamp_modifier.checkpoint.files import read_header
from tamp_modifier.checkpoint.marker import CONFIG_KEY
from tamp_modifier.files import follow_umask, whole_file
from tamp_modifier.upstream.experts import experts_as_read

_DONE = "_tamp_completes"


def complete_when_saved(model: Any) -> None:
    """Make ``model.save_pretrained`` complete the config.json that it writes; idempotent."""
    save = model.save_pretrained
    if getattr(save, _DONE, False):
        return
    reference = weakref.ref(model)

    @wraps(save)
    def complete(save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        saved: Any = reference()
        with experts_as_read(saved):
            result = save(save_directory, *args, **kwargs)
        if is_source_process():
            complete_config(Path(save_directory) / "config.json", saved)
            for file in Path(save_directory).glob("*.safetensors"):
                follow_umask(file)
            _check_saved(Path(save_directory), saved)
        return result

    setattr(complete, _DONE, True)
    model.save_pretrained = complete


def _check_saved(folder: Path, model: Any) -> None:
    """Check that the checkpoint brings back every parameter of the model.

    Raises:
        ValueError: it does not; names the parameters.
    """
    if not isinstance(model, PreTrainedModel):
        return
    config = type(model.config).from_pretrained(folder)
    require_complete(type(model), config, read_header(sorted(folder.glob("*.safetensors"))), folder)


def complete_config(path: Path, model: Any) -> None:
    """Write the marker of a model and all names of its unquantized Linears into its config.json.

    Args:
        path: the config.json, which is replaced as a whole.
        model: the model that was saved.
    """
    config = json.loads(path.read_text(encoding="utf-8"))
    completed = dict(config)
    marker = getattr(model.config, CONFIG_KEY, None)
    if marker is not None:
        completed[CONFIG_KEY] = marker
    quantization = config.get("quantization_config")
    if quantization is not None:
        names = dict.fromkeys([*(quantization.get("ignore") or []), *_not_quantized(model)])
        completed["quantization_config"] = {**quantization, "ignore": list(names)}
    if completed == config:
        return
    text = json.dumps(completed, indent=2, sort_keys=True)
    with whole_file(path) as file:
        file.write_text(text + "\n", encoding="utf-8")


def _not_quantized(model: nn.Module) -> list[str]:
    """Modules that are not quantized, of the classes of which some are."""
    modules = list(model.named_modules())
    classes = {type(module) for _, module in modules if is_module_quantized(module)}
    return [name for name, m in modules if type(m) in classes and not is_module_quantized(m)]
