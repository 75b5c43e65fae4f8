"""ECoFLaP (arXiv 2310.02998): block sparsities from zeroth-order gradients, then Wanda.

The importance of block l is the mean over calibration samples of

    | L(theta_l + mu z) - L(theta_l - mu z) | / (2 mu),   z ~ N(0, 1) on the weights of the block,

L being the language modelling loss of the text tokens: an estimate of the size of the gradient that
needs forward passes only. Kept weights follow it block by block, no block losing more than s + 0.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from benchmarks.quality.models import QualityModel
from tamp_modifier.allocation import allocate_sparsity

MU = 1e-3
SAMPLES = 16
"""Calibration samples that the loss is measured on; every block costs two passes over them."""


def allocate(
    model: QualityModel, dense: Any, batches: Sequence[Mapping[str, torch.Tensor]], sparsity: float
) -> dict[str, float]:
    """Sparsity of every Linear; those of one decoder layer have the same."""
    blocks: dict[str, dict[str, nn.Linear]] = {}
    for name, linear in model.linears(dense).items():
        blocks.setdefault(".layers.".join(layer_of(name)), {})[name] = linear
    kind = dense.dtype
    dense.float()  # half precision would round most of the step away; the way back is exact
    importance = block_importance(dense, blocks, batches[:SAMPLES])
    dense.to(kind)
    numel = {
        block: sum(linear.weight.numel() for linear in members.values())
        for block, members in blocks.items()
    }
    shares = allocate_sparsity(importance, numel, sparsity, min(1.0, sparsity + 0.1))
    return {name: shares[block] for block, members in blocks.items() for name in members}


def layer_of(name: str) -> tuple[str, str]:
    """Return what a Linear's decoder layer is in, and the number of the layer."""
    model, _, rest = name.partition(".layers.")
    return model, rest.partition(".")[0]


@torch.no_grad()
def block_importance(
    dense: Any,
    blocks: Mapping[str, Mapping[str, nn.Linear]],
    batches: Sequence[Mapping[str, torch.Tensor]],
) -> dict[str, float]:
    """Zeroth-order estimate of every block; the weights are as before in the end.

    Args:
        dense: the model.
        blocks: block -> its Linears by name.
        batches: calibration samples.
    """
    importance = {}
    for number, (block, members) in enumerate(blocks.items()):
        weights = [linear.weight for linear in members.values()]
        kept = [weight.detach().clone() for weight in weights]
        generator = torch.Generator().manual_seed(number)
        noise = [torch.randn(weight.shape, generator=generator) for weight in weights]
        losses = []
        for sign in (1.0, -1.0):
            for weight, old, z in zip(weights, kept, noise, strict=True):
                weight.copy_((old.float() + sign * MU * z.to(old.device)).to(weight))
            losses.append([text_loss(dense, batch) for batch in batches])
        for weight, old in zip(weights, kept, strict=True):
            weight.copy_(old)
        differences = [abs(a - b) for a, b in zip(*losses, strict=True)]
        importance[block] = sum(differences) / len(differences) / (2.0 * MU)
    return importance


def text_loss(model: Any, batch: Mapping[str, torch.Tensor]) -> float:
    """Mean negative log-likelihood of the tokens of one sample that are text."""
    from tamp_modifier.tokens import modality_token_ids

    ids = batch["input_ids"]
    logits = model(**batch, use_cache=False).logits[:, :-1].float()
    wanted = ids[:, 1:]
    text = batch.get("attention_mask", torch.ones_like(ids))[:, 1:].bool()
    for numbers in modality_token_ids(model.config).values():
        text = text & ~torch.isin(wanted, torch.tensor(numbers))
    loss = -logits.log_softmax(-1).gather(-1, wanted[..., None])[..., 0]
    return float(loss[text].mean())
