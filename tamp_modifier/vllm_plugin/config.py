"""The quantization config that vLLM asks which method each layer takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.fused_moe import RoutedExperts
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import (
    UnquantizedFusedMoEMethod,
)
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.base_config import (
    QuantizationConfig,
    QuantizeMethodBase,
)
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import (
    CompressedTensorsConfig,
    CompressedTensorsLinearMethod,
)
from vllm.model_executor.models.utils import WeightsMapper

from tamp_modifier.checkpoint.integrity import check_folder
from tamp_modifier.checkpoint.marker import INNER_KEY, QUANT_METHOD, Marker, find_marker
from tamp_modifier.checkpoint.served import COMPRESSED_TENSORS, activations
from tamp_modifier.sparse.amx import request_amx
from tamp_modifier.sparse.choice import mode
from tamp_modifier.vllm_plugin.experts import experts_method
from tamp_modifier.vllm_plugin.linear import Summary
from tamp_modifier.vllm_plugin.names import QUANTIZATION
from tamp_modifier.vllm_plugin.schemes import sparse_method
from tamp_modifier.vllm_plugin.weights import Checks, JoiningMapper


class TampSparseConfig(QuantizationConfig):
    """Serve pruned Linears sparse and leave everything else to vLLM.

    Args:
        inner: the config of a quantized checkpoint, None for bf16, fp16 and fp32 weights.

    Raises:
        ValueError: the environment variable ``TAMP_SERVE`` or ``TAMP_INT4_ACTIVATIONS`` is wrong.
    """

    def __init__(self, inner: CompressedTensorsConfig | None = None) -> None:
        super().__init__()
        # Wrong ones are refused before anything is read.
        mode()
        activations(None)
        self.marker = Marker()  # without one in config.json every Linear is judged by its zeros
        self.checks = Checks()
        self.inner = inner
        self.summary = Summary()

    # -- what vLLM asks before it builds the model ------------------------------------------------

    @classmethod
    def get_name(cls) -> str:
        """Return the method's name in vLLM."""
        return QUANTIZATION

    @classmethod
    def get_supported_act_dtypes(cls) -> list[torch.dtype]:
        """dtypes that the kernels multiply; vLLM refuses others."""
        return [torch.bfloat16, torch.float16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        """CUDA compute capability times ten."""
        return 75

    @staticmethod
    def get_config_filenames() -> list[str]:
        """No file but config.json."""
        return []

    @classmethod
    def override_quantization_method(
        cls, hf_quant_cfg: dict[str, Any], user_quant: str | None, hf_config: Any = None
    ) -> str | None:
        """Recognise a pruned checkpoint by the marker in its config.json."""
        if user_quant not in (None, QUANTIZATION):
            return None
        wanted = user_quant == QUANTIZATION or find_marker(hf_config) is not None
        return QUANTIZATION if wanted else None

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TampSparseConfig:
        """Build from the quantization config that vLLM found: ours, or compressed-tensors'.

        Raises:
            ValueError: another quantization method.
        """
        if config.get("quant_method") == QUANT_METHOD:  # packed, perhaps over another method
            config = config.get(INNER_KEY) or {}
        method = config.get("quant_method") or ""
        if method == COMPRESSED_TENSORS:
            # vLLM refuses a non-empty sparsity_config; its weights are unpacked by us.
            config = {key: value for key, value in config.items() if key != "sparsity_config"}
            return cls(inner=CompressedTensorsConfig.from_config(config))
        if method:
            raise ValueError(
                f"sparse weights quantized with {method!r} are not supported, "
                f"allowed are bf16, fp16, fp32 and {COMPRESSED_TENSORS}"
            )
        return cls()  # the marker follows in maybe_update_config

    def maybe_update_config(
        self, model_name: str, hf_config: Any = None, revision: str | None = None
    ) -> None:
        """Read the marker and check the files before any weight is read."""
        self.marker = find_marker(hf_config) or Marker()
        self.checks = Checks(self.marker.checksums or {})
        folder = Path(model_name)
        if folder.is_dir() and next(folder.glob("*.safetensors"), None) is not None:
            check_folder(folder, self.marker)

    # -- what vLLM asks while it builds the model -------------------------------------------------

    def apply_vllm_mapper(self, hf_to_vllm_mapper: WeightsMapper) -> None:
        """Rename the listed Linears from their names on disk to vLLM's."""
        if self.marker.linears is not None:
            self.marker.linears = hf_to_vllm_mapper.apply_dict(self.marker.linears)
        if self.inner is not None:
            self.inner.apply_vllm_mapper(hf_to_vllm_mapper)

    def get_quant_method(self, layer: nn.Module, prefix: str) -> QuantizeMethodBase | None:
        """Return method of one layer; sparse for the pruned Linears, vLLM's own for all others."""
        request_amx()  # `register` may have run before this process was forked
        if self.inner is not None:
            # By reference in vLLM, and filled in after this object was made.
            self.inner.packed_modules_mapping = self.packed_modules_mapping
            method = self.inner.get_quant_method(layer, prefix)
        elif isinstance(layer, LinearBase):
            method = UnquantizedLinearMethod()
        elif isinstance(layer, RoutedExperts):
            method = UnquantizedFusedMoEMethod(layer.moe_config)
        else:
            method = None
        if isinstance(layer, RoutedExperts) and method is not None:
            expected = self.expected_of_experts(prefix, layer)
            return experts_method(method, layer, prefix, expected, self.summary)
        if not isinstance(layer, LinearBase) or not isinstance(
            method, (UnquantizedLinearMethod, CompressedTensorsLinearMethod)
        ):
            return method
        pruned, expected = self.lookup(prefix)
        if not pruned:
            return method
        activations = self.marker.activations
        return sparse_method(method, layer, prefix, expected, self.summary, activations)

    def lookup(self, prefix: str) -> tuple[bool, int | None]:
        """Look a layer up in the marker.

        Args:
            prefix: vLLM's name of a Linear, fused or not.

        Returns:
            Whether any part of it is pruned (True where the marker lists nothing), and its number
            of non-zero weights; None where the marker does not list every part.
        """
        linears = self.marker.linears
        if linears is None:
            return True, None
        parent, _, last = prefix.rpartition(".")
        parts = self.packed_modules_mapping.get(last, [last])
        names = (
            [prefix]
            if prefix in linears
            else [f"{parent}.{part}" if parent else part for part in parts]
        )
        counts = [linears[name] for name in names if name in linears]
        return bool(counts), sum(counts) if len(counts) == len(names) else None

    def expected_of_experts(self, prefix: str, layer: RoutedExperts) -> int | None:
        """Return the non-zero weights of all experts of a layer; None if not all are listed."""
        listed = self.marker.linears or {}
        counts = [count for name, count in listed.items() if name.startswith(f"{prefix}.")]
        return sum(counts) if len(counts) == 3 * layer.global_num_experts else None

    # -- what vLLM asks while it loads the weights ------------------------------------------------

    def get_cache_scale_mapper(self) -> WeightsMapper:
        """Return renamings of KV cache scales."""
        source = self.inner if self.inner is not None else QuantizationConfig
        return source.get_cache_scale_mapper()

    def get_checkpoint_weight_mapper(self) -> WeightsMapper:
        """Return renamings of the checkpoint's tensors; joins packed ones on the way."""
        source = self.inner if self.inner is not None else QuantizationConfig
        mapper = JoiningMapper()
        mapper.checks = self.checks
        return mapper | source.get_checkpoint_weight_mapper()
