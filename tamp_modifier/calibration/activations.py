"""What the observer hands to collectors."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tamp_modifier.calibration.targets import Target


@dataclass(frozen=True, eq=False)
class Activations:
    """What one Linear saw and gave in one sample.

    Attributes:
        target: the Linear.
        sample: number of the sample in the calibration set.
        inputs: [tokens, in_features], in the model's dtype.
        outputs: [tokens, out_features].
        types: int64 [tokens], modalities.
        sample_size: number of the sample's real tokens; an expert sees some of them only. Where
            samples cannot be told apart, as in some encoders, a batch is one sample.
        attention: float32 [tokens] from the last real token, or None where the layer has no
            weights.
        tokens: int64 [tokens], each row's index among the sample's real tokens; None if it is the
            row.
        cross: True for the states that keys and values of a cross-attention see: no selection is
            among them.
        routed: False for the tokens of an expert that no token of the batch was routed to.
    """

    target: Target
    sample: int
    inputs: torch.Tensor
    outputs: torch.Tensor
    types: torch.Tensor
    sample_size: int
    attention: torch.Tensor | None = None
    tokens: torch.Tensor | None = None
    routed: bool = True
    cross: bool = False


@dataclass(frozen=True, eq=False)
class LayerStates:
    """What one decoder layer got and gave in one sample.

    Attributes:
        sample: number of the sample in the calibration set.
        inputs: [tokens, hidden].
        outputs: [tokens, hidden].
        types: int64 [tokens], modalities.
    """

    sample: int
    inputs: torch.Tensor
    outputs: torch.Tensor
    types: torch.Tensor
