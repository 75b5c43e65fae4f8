"""How far a student is from its teacher."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

POSITIONS = 64
"""Positions whose distributions are compared at once: a vocabulary times them stays in caches."""


def counted_positions(
    input_ids: Tensor, attention_mask: Tensor, placeholders: Sequence[int]
) -> Tensor:
    """Where a model predicts a token of text: the next token is real and stands for no medium.

    Args:
        input_ids: int64 [samples, tokens].
        attention_mask: [samples, tokens], 0 for padding.
        placeholders: ids that stand for media.

    Returns:
        bool [samples, tokens - 1].
    """
    media = torch.isin(input_ids, torch.tensor(list(placeholders), device=input_ids.device).long())
    real = attention_mask.bool()
    return real[:, :-1] & real[:, 1:] & ~media[:, 1:]


def logits_at(
    model: Any, inputs: Mapping[str, Tensor], counted: Tensor, hidden: bool = False
) -> tuple[Tensor, Sequence[Tensor] | None]:
    """Run a model, and return its logits where they count.

    The output head of a large vocabulary is a good part of a small model's work, so it runs on
    positions that count in some sample alone, where the model can be told so.

    Args:
        model: of transformers, or one that wraps it as ``module``.
        inputs: of the model.
        counted: bool [samples, tokens - 1], positions that count.
        hidden: whether hidden states are wanted.

    Returns:
        Logits [counted positions, vocabulary], sample by sample; hidden states of each layer,
        [samples, tokens, features], or None.
    """
    places = counted.any(0).nonzero()[:, 0]
    kind: Any = type(getattr(model, "module", model))
    told = {"logits_to_keep": places} if _takes_places(kind) else {}
    outputs = model(**inputs, use_cache=False, output_hidden_states=hidden, **told)
    logits = outputs.logits if told else outputs.logits[:, places]
    here = counted[:, places]
    logits = logits.flatten(0, 1) if bool(here.all()) else logits[here]
    return logits, getattr(outputs, "hidden_states", None)


@cache
def _takes_places(kind: type[nn.Module]) -> bool:
    return "logits_to_keep" in inspect.signature(kind.forward).parameters


def divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean KL(teacher || student) of positions, in nats, times the squared temperature.

    Distillation as in Hinton et al., section 2 (arXiv 1503.02531); the factor keeps gradients of
    one size at all temperatures.

    Args:
        student: logits [positions, vocabulary].
        teacher: logits [positions, vocabulary], without gradient.
        temperature: both are divided by it.

    Returns:
        fp32 scalar; 0 where there is no position.

    Raises:
        ValueError: the shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"student logits {list(student.shape)}, teacher {list(teacher.shape)}")

    return _Divergence.apply(student, teacher, temperature)


class _Divergence(torch.autograd.Function):
    """The divergence, and on the way its gradient: (q - p) times temperature over positions.

    Autograd would keep several copies of [positions, vocabulary] and pass over them again.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        count = max(1, len(student))
        gradient = torch.empty_like(student) if ctx.needs_input_grad[0] else None
        total = student.new_zeros((), dtype=torch.float32)
        for begin in range(0, len(student), POSITIONS):
            part = slice(begin, begin + POSITIONS)
            wanted = _log_shares(teacher[part], temperature)
            found = _log_shares(student[part], temperature)
            shares = wanted.exp()
            total += wanted.sub_(found).mul_(shares).sum()
            if gradient is not None:
                gradient[part] = found.exp_().sub_(shares).mul_(temperature / count)
        ctx.save_for_backward(gradient)
        return total / count * temperature**2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer.to(gradient.dtype), None, None


def _log_shares(logits: Tensor, temperature: float) -> Tensor:
    scaled = logits.float() if temperature == 1 else logits.float() / temperature
    return scaled.log_softmax(-1)


def divergence_of_top(
    student: Tensor, indices: Tensor, log_shares: Tensor, temperature: float = 1.0
) -> Tensor:
    """`divergence` where only the teacher's most likely tokens are known.

    All other tokens count as one, which makes this a lower bound of the whole divergence, and 0
    where the distributions are the same.

    Args:
        student: logits [positions, vocabulary].
        indices: int64 [positions, k], tokens.
        log_shares: [positions, k], log-probabilities of the teacher at the same temperature.
        temperature: of both.

    Returns:
        fp32 scalar; 0 where there is no position.
    """

    def part(mine: Tensor, tokens: Tensor, wanted: Tensor) -> Tensor:
        wanted = wanted.float()
        found = (mine.float() / temperature).log_softmax(-1).gather(-1, tokens)
        listed = (wanted.exp() * (wanted - found)).sum()
        theirs, ours = _rest(wanted), _rest(found)
        return listed + (theirs * (theirs.log() - ours.log())).sum()

    return _mean(part, student, indices, log_shares) * temperature**2


def _rest(log_shares: Tensor) -> Tensor:
    """Return what is left of 1, [positions]; at least what fp32 can tell from 0, for its log."""
    return (1 - log_shares.exp().sum(-1)).clamp_min(1e-7)


def _mean(part: object, student: Tensor, *others: Tensor) -> Tensor:
    """Mean over positions of a sum over them, in parts that are computed again going back."""
    total = student.new_zeros((), dtype=torch.float32)
    for begin in range(0, len(student), POSITIONS):
        parts = [tensor[begin : begin + POSITIONS] for tensor in (student, *others)]
        total = total + checkpoint(part, *parts, use_reentrant=False)
    return total / max(1, len(student))


def hidden_error(student: Sequence[Tensor], teacher: Sequence[Tensor], counted: Tensor) -> Tensor:
    """Mean over layers of the squared error of hidden states over the teacher's mean square.

    SquareHead (arXiv 2310.06927, equation 2).

    Args:
        student: [samples, tokens, features] of each layer.
        teacher: the same, without gradient.
        counted: bool [samples, tokens], which tokens count.

    Returns:
        fp32 scalar.
    """
    errors = []
    for mine, theirs in zip(student, teacher, strict=True):
        wanted = theirs[counted].float()
        error = (mine[counted].float() - wanted).square().mean()
        errors.append(error / wanted.square().mean().clamp_min(1e-12))
    return torch.stack(errors).mean()
