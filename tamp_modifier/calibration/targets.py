"""Which Linears are pruned, and where in the model each of them lives."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from compressed_tensors.utils import is_match
from llmcompressor.modeling.moe.linear_experts import LinearExperts2D
from loguru import logger
from torch import nn

from tamp_modifier.architectures import ALWAYS_IGNORED

LEFT_DENSE = 0.05
"""Share of the decoder's weights from which on it is told that they stay dense."""


@dataclass(frozen=True, eq=False)
class Target:
    """A Linear that is pruned.

    Attributes:
        name: its full name in the model.
        module: the Linear itself.
        layer: full name of its decoder layer; None outside of the text decoder.
        experts: full name of the container of linearised experts that it belongs to, or None.
        expert: its number in that container, or None.
    """

    name: str
    module: nn.Linear
    layer: str | None
    experts: str | None = None
    expert: int | None = None


def find_decoder_layers(model: nn.Module, classes: Sequence[str] = ()) -> dict[str, nn.Module]:
    """Find the decoder layers of the text decoder.

    Args:
        model: any model; multimodal ones of transformers tell their text decoder by
            ``get_decoder``.
        classes: class names or name patterns of the decoder layers, where the model does not tell.

    Returns:
        Full name to module, in order of depth.

    Raises:
        ValueError: none is found, or the model is an encoder-decoder.
    """
    _refuse_encoder_decoder(model)
    if classes:
        layers = {
            name: module
            for name, module in model.named_modules()
            if any(is_match(name, module, pattern) for pattern in classes)
        }
        if not layers:
            raise ValueError(f"sequential_targets={list(classes)} matches no module of the model")
        return layers

    decoder = _text_decoder(model)
    stacks = [
        (name.count("."), -_count_linears(module), module)
        for name, module in decoder.named_modules()
        if isinstance(module, nn.ModuleList) and _count_linears(module) > 0
    ]
    if not stacks:
        raise ValueError(
            "the decoder layers of the model cannot be found; "
            "set sequential_targets to the class name of its decoder layer"
        )
    # The decoder's own stack is the outermost one, as experts are stacks inside of it, and the
    # largest.
    stack = min(stacks, key=lambda item: item[:2])[2]
    prefix = next(name for name, module in model.named_modules() if module is stack)
    return {f"{prefix}.{index}": layer for index, layer in enumerate(stack)}


def find_targets(
    model: nn.Module,
    layers: dict[str, nn.Module],
    targets: Sequence[str],
    ignore: Sequence[str],
) -> tuple[list[Target], list[str]]:
    """Match the Linears to prune.

    A class name such as ``Linear`` matches inside the text decoder only, so that vision and audio
    towers, projectors and embeddings stay as they are. A module name or ``re:`` pattern matches
    anywhere. Routers match only by a name or pattern of their own, the output head not at all.

    Args:
        model: the model.
        layers: its decoder layers, from `find_decoder_layers`.
        targets: class names, module names or ``re:`` patterns.
        ignore: the same; what they match is left alone.

    Returns:
        The targets in order of the model, and the ``ignore`` patterns that matched no module.

    Raises:
        ValueError: no target, a target that matches nothing or is not a regular expression, nothing
            left after ignoring, or the output head.
    """
    if not targets:
        raise ValueError("targets is empty; give class names, module names or 're:' patterns")
    _check_patterns("targets", targets)
    _check_patterns("ignore", ignore)
    ignore_hits = dict.fromkeys(ignore, False)
    target_hits = dict.fromkeys(targets, False)
    containers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LinearExperts2D)
    }
    found: list[Target] = []
    for name, module in model.named_modules():
        ignored = [pattern for pattern in ignore if is_match(name, module, pattern)]
        ignore_hits.update(dict.fromkeys(ignored, True))
        if not isinstance(module, nn.Linear):
            continue
        layer = next((layer for layer in layers if name.startswith(f"{layer}.")), None)
        hits = [pattern for pattern in targets if _is_target(name, module, layer, pattern)]
        target_hits.update(dict.fromkeys(hits, True))
        if hits and not _is_ignored(name, module, ignore):
            experts, expert = _expert_of(name, containers)
            found.append(Target(name, module, layer, experts, expert))

    missed = [pattern for pattern, hit in target_hits.items() if not hit]
    if missed:
        raise ValueError(f"targets={missed} match no Linear of the model")
    if not found:
        raise ValueError(f"targets={list(targets)} are all ignored by ignore={list(ignore)}")
    get_head = getattr(model, "get_output_embeddings", None)
    head = get_head() if callable(get_head) else None
    for target in found:
        if target.module is head:
            raise ValueError(
                f"targets={list(targets)} match the output head {target.name}, which "
                "llm-compressor does not compute during calibration; add it to ignore"
            )
    return found, [pattern for pattern, hit in ignore_hits.items() if not hit]


def left_dense(
    layers: dict[str, nn.Module], targets: Sequence[Target]
) -> tuple[dict[str, int], float]:
    """Find the matrices of the decoder layers that are left out by nobody's choice.

    Linears that ``targets`` and ``ignore`` leave out are the user's choice. All else is told:
    experts that are one tensor of three dimensions, convolutions, what `ALWAYS_IGNORED` names.

    Args:
        layers: the decoder layers, from `find_decoder_layers`.
        targets: what is pruned.

    Returns:
        Number of weights by kind, the largest first, where a kind is a parameter's place in its
        layer; and the share of all of them in the matrices of the decoder layers.
    """
    pruned = {target.module for target in targets}
    kinds: Counter[str] = Counter()
    total = 0
    for layer, root in layers.items():
        for name, module in root.named_modules():
            chosen = module in pruned or (
                isinstance(module, nn.Linear) and not _always_ignored(f"{layer}.{name}", module)
            )
            for own, parameter in module.named_parameters(recurse=False):
                if parameter.dim() not in (2, 3):
                    continue
                total += parameter.numel()
                if not chosen:
                    kinds[re.sub(r"\.\d+(?=\.)", "", f"{name}.{own}")] += parameter.numel()
    return dict(kinds.most_common()), sum(kinds.values()) / max(total, 1)


def warn_left_dense(layers: dict[str, nn.Module], targets: Sequence[Target]) -> list[str]:
    """Warn where more than `LEFT_DENSE` of the decoder's matrices are not pruned.

    Returns:
        The warning, for the report; empty where there is none.
    """
    kinds, share = left_dense(layers, targets)
    if share <= LEFT_DENSE:
        return []
    named = ", ".join(f"{kind} ({count:,})" for kind, count in list(kinds.items())[:5])
    warning = (
        f"{share:.0%} of the weights in matrices of the decoder layers are in no Linear and stay "
        f"dense: {named}{', ...' if len(kinds) > 5 else ''}"
    )
    logger.warning(warning)
    return [warning]


def _refuse_encoder_decoder(model: nn.Module) -> None:
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else None
    if any(getattr(level, "is_encoder_decoder", False) is True for level in (config, text)):
        raise ValueError(
            f"{type(model).__name__} is an encoder-decoder, which TAMP does not prune: it is for "
            "decoders that read the tokens of all modalities themselves"
        )


def _text_decoder(model: nn.Module) -> nn.Module:
    get_decoder = getattr(model, "get_decoder", None)
    decoder = get_decoder() if callable(get_decoder) else None
    return decoder if isinstance(decoder, nn.Module) else model


def _check_patterns(field: str, patterns: Sequence[str]) -> None:
    for pattern in patterns:
        if pattern.startswith("re:"):
            try:
                re.compile(pattern[3:])
            except re.error as error:
                raise ValueError(
                    f"{field}: {pattern!r} is not a regular expression: {error}"
                ) from None


def _count_linears(module: nn.Module) -> int:
    return sum(isinstance(child, nn.Linear) for child in module.modules())


def _is_target(name: str, module: nn.Linear, layer: str | None, pattern: str) -> bool:
    if not is_match(name, module, pattern):
        return False
    by_name = pattern == name or pattern.startswith("re:")
    return by_name or (layer is not None and not _always_ignored(name, module))


def _always_ignored(name: str, module: nn.Module) -> bool:
    return any(is_match(name, module, other) for other in ALWAYS_IGNORED)


def _is_ignored(name: str, module: nn.Linear, ignore: Sequence[str]) -> bool:
    # An ignored name covers what is inside it, as a user who ignores "model.layers.0" expects.
    return any(
        is_match(name, module, pattern) or name.startswith(f"{pattern}.") for pattern in ignore
    )


def _expert_of(name: str, containers: Iterable[str]) -> tuple[str | None, int | None]:
    for container in containers:
        if name.startswith(f"{container}."):
            return container, int(name[len(container) + 1 :].split(".")[0])
    return None, None
