"""A transformers quantizer that unpacks a packed checkpoint before transformers reads it.

transformers decides by ``quantization_config`` in config.json which quantizer looks after a load.
This one has transformers read a dense copy of the files, in a temporary folder that is removed
right after the load; the loaded model is an ordinary dense one and keeps no trace of the quantizer.
Renamed keys, merged experts, dtypes, device maps and parallel loading are thus transformers' own.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers.quantizers.auto import (
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from tamp_modifier.checkpoint.completeness import require_complete
from tamp_modifier.checkpoint.files import Header, read_header
from tamp_modifier.checkpoint.marker import (
    CONFIG_KEY,
    INNER_KEY,
    QUANT_METHOD,
    config_marker,
    read_marker,
)
from tamp_modifier.checkpoint.pack import write_dense


class TampSparseConfig(QuantizationConfigMixin):
    """``quantization_config`` of a packed checkpoint."""

    def __init__(self, **fields: Any) -> None:
        self.quant_method = QUANT_METHOD  # type: ignore[assignment]
        self.inner = fields.get(INNER_KEY)


class TampSparseQuantizer(HfQuantizer):
    """Load a packed checkpoint as the dense model that was packed."""

    quantization_config: TampSparseConfig

    def __init__(self, quantization_config: TampSparseConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        # What transformers reads is dense: dtypes are to be handled as for any other checkpoint.
        self.pre_quantized = False
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._shapes: dict[str, torch.Size] = {}
        self._header: Header = {}

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Refuse what cannot be loaded, before anything is read.

        Raises:
            ValueError: the packed weights are quantized as well.
        """
        inner = self.quantization_config.inner
        if inner is not None:
            raise ValueError(
                f"the weights are packed and quantized with {inner.get('quant_method')!r}; "
                "transformers can load them after `tamp unpack DIR OUT`"
            )

    def preprocess_model(self, model: Any, dtype: Any = None, **kwargs: Any) -> None:
        """Have transformers read dense copies of the files.

        Raises:
            ValueError: a file is damaged or does not fit config.json; names the tensor.
        """
        marker = read_marker(model.config.to_dict())
        if marker is None or marker["layout"] != "packed":
            raise ValueError(f"config.json, {CONFIG_KEY}: the marker of a packed checkpoint lacks")
        files: list[str] = kwargs["checkpoint_files"]
        self._shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        self._folder = tempfile.TemporaryDirectory(prefix="tamp-unpacked-")
        # In place: transformers reads from this list afterwards.
        files[:] = map(str, write_dense(files, Path(self._folder.name), marker))
        self._header = read_header(map(Path, files))
        model.config.compression_config = config_marker("dense", marker["linears"])

    def postprocess_model(self, model: Any, **kwargs: Any) -> None:
        """Leave an ordinary dense model behind.

        Raises:
            ValueError: a weight has another shape than config.json asks for, or parameters are
                missing; names them.
        """
        if self._folder is not None:
            self._folder.cleanup()
        self.remove_quantization_config(model)
        # transformers leaves this check to the quantizer if there is one.
        for name, tensor in model.state_dict().items():
            if tensor.shape != self._shapes.get(name, tensor.shape):
                raise ValueError(
                    f"{name}: the checkpoint has shape {tuple(tensor.shape)}, the model of "
                    f"config.json {tuple(self._shapes[name])}"
                )
        # Not before: until here transformers ties no weights, and would miss those that are tied.
        require_complete(type(model), model.config, self._header, model.config.name_or_path)

    def is_serializable(self) -> bool:
        """Packing is done by ``tamp pack``, not by ``save_pretrained``."""
        return False

    @property
    def is_trainable(self) -> bool:
        """The loaded model is dense."""
        return True


def register_quantizers() -> None:
    """Tell transformers about the method; harmless when called again."""
    if QUANT_METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantization_config(QUANT_METHOD)(TampSparseConfig)
        register_quantizer(QUANT_METHOD)(TampSparseQuantizer)
