"""GPTQ, and then a descent on its grid: better 4-bit weights, dense or pruned."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from compressed_tensors.offload import disable_offloading, update_offload_parameter
from llmcompressor.core import State
from llmcompressor.modifiers.factory import ModifierFactory
from llmcompressor.modifiers.gptq import GPTQModifier
from pydantic import Field

from tamp_modifier.scores.grid import fit_on_grid
from tamp_modifier.zeros.remembered import pruned_bits

STRATEGIES = ("group", "channel")


class FittedGPTQModifier(GPTQModifier):
    """`GPTQModifier`, whose weights and scales are then fitted to the outputs; see `scores.grid`.

    GPTQ fixes a column before it has seen the next ones, and its grid before it has seen any. The
    descent goes over all columns again and lowers the error of each Linear's outputs on the
    calibration tokens; what is stored has the same form, and pruned weights stay zero. Takes the
    fields of `GPTQModifier`; integers in groups or channels, symmetric or not. What falls is the
    error with GPTQ's damping, and scales are rounded to their type. Linears are taken one by one,
    so ``batched_quantization`` has no effect; one more Hessian and six weights in fp32 are held.

    Attributes:
        rounds: over scales and columns.
    """

    rounds: int = Field(default=3, ge=1)

    def on_initialize(self, state: State, **kwargs: Any) -> bool:
        """Refuse schemes that cannot be fitted, before any work.

        Raises:
            ValueError: such a scheme; names the Linear.
        """
        done = super().on_initialize(state, **kwargs)
        for module, name in self._module_names.items():
            scheme = getattr(module, "quantization_scheme", None)
            weights = None if scheme is None else scheme.weights
            if weights is None:
                continue
            if weights.type != "int" or weights.strategy not in STRATEGIES:
                raise ValueError(
                    f"FittedGPTQModifier fits integers in groups or channels; {name} has "
                    f"{weights.type} by {weights.strategy}, take GPTQModifier"
                )
            if weights.actorder in ("group", "dynamic"):
                raise ValueError(
                    f"FittedGPTQModifier needs groups of neighbouring columns; {name} has "
                    f'actorder {weights.actorder!r}, allowed are "static" and None'
                )
        return bool(done)

    def compress_module_list(self, module_list: list[Any]) -> None:
        """Quantize modules one after the other, and fit each."""
        for module in module_list:
            hessian = self._hessians[module].float() / self._num_samples[module]
            with disable_offloading(), torch.no_grad():
                weight = module.weight.detach().float().clone()
            super().compress_module_list([module])
            with disable_offloading(), torch.no_grad():
                self._fit(module, weight, hessian)

    def _fit(self, module: Any, weight: torch.Tensor, hessian: torch.Tensor) -> None:
        hessian = hessian.to(weight.device)
        diagonal = hessian.diagonal()
        mean = diagonal.mean()
        if not bool(mean > 0):
            self._tell(module, "no token came by")
            return
        diagonal[diagonal == 0] = 1.0  # inputs that are always zero, as in GPTQ
        diagonal.add_((self.dampening_frac or 0.0) * mean)
        bits = pruned_bits(module)
        kept = torch.ones_like(weight, dtype=torch.bool)
        if bits is not None:
            kept = bits.mask(weight.device).logical_not_()
        fitted, scale = fit_on_grid(
            module.weight.detach().float(),
            module.weight_scale.detach().float(),
            weight,
            hessian,
            kept,
            module.quantization_scheme.weights.num_bits,
            self.rounds,
            getattr(module, "weight_zero_point", None),
            module.weight_scale.dtype,
        )
        if not bool(torch.isfinite(fitted).all()):
            self._tell(module, "the outputs are not finite")
            return
        update_offload_parameter(module, "weight", fitted.to(module.weight.dtype))
        update_offload_parameter(module, "weight_scale", scale.to(module.weight_scale.dtype))

    def _tell(self, module: Any, why: str) -> None:
        warnings.warn(f"{self._module_names[module]} is not fitted, {why}", stacklevel=2)


ModifierFactory.register("FittedGPTQModifier", FittedGPTQModifier)
