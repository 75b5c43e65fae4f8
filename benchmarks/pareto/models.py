"""The models of the quality tables, computed in fp32.

Weights are those of bfloat16 before and after. Processors without units for bfloat16 emulate its
products, seven times slower than fp32; in fp32 cells of all processors can stand side by side.
"""

from __future__ import annotations

from typing import Any

from benchmarks.quality.models import SmolAV, SmolLM2


class FloatSmolLM2(SmolLM2):
    """SmolLM2 in fp32."""

    def load(self) -> Any:
        return super().load().float()


class FloatSmolAV(SmolAV):
    """SmolAV in fp32."""

    def load(self) -> Any:
        return super().load().float()


MODELS = {model.name: model for model in (FloatSmolLM2, FloatSmolAV)}
