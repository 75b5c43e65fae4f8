"""Save the experts of a mixture-of-experts model under the names that the architecture reads.

llm-compressor replaces the fused experts of a model, one tensor for all of a layer, by one Linear
per expert and projection, and leaves them so when it saves. Only few architectures read that; the
others find no expert, and transformers fills them with random numbers (llm-compressor #3069). For
the time of a save the experts therefore go back into the module that they came from, and
transformers writes them in the layout of the architecture's own checkpoints.

Quantized experts have scales of their own and stay apart. They are written under the names of the
architecture's checkpoints where these keep one tensor per expert, and refused before pruning where
they do not.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from compressed_tensors.offload import disable_onloading, get_cache_init_kwargs, offload_module
from compressed_tensors.quantization.utils import is_module_quantized
from compressed_tensors.utils import match_named_modules
from llmcompressor.modeling.moe.gpt_oss import GptOssExpertMLP
from llmcompressor.modeling.moe.linear_experts import LinearExperts2D
from llmcompressor.modeling.moe.linearize import get_non_linearized_moes
from llmcompressor.modifiers.quantization.quantization.mixin import QuantizationMixin
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming

from tamp_modifier.upstream.grouped_experts import GroupedExperts, register_experts

_FUSED = {
    "experts.gate_up_proj": ("gate_proj", "up_proj"),
    "experts.up_proj": ("up_proj",),
    "experts.down_proj": ("down_proj",),
}
"""The projections that one fused tensor holds, in its order."""


def expert_containers(model: nn.Module) -> dict[str, LinearExperts2D]:
    """Experts that llm-compressor has made Linears of, by the name of their container."""
    return {n: m for n, m in model.named_modules() if isinstance(m, LinearExperts2D)}


def make_linear(model: nn.Module) -> None:
    """Replace the fused experts of a model without weights by Linears, as oneshot does."""
    register_experts(model)
    with torch.device("meta"):
        for name, experts in get_non_linearized_moes(model):
            fused: Any = experts
            kind = LinearExperts2D.get_linear_experts_cls(type(fused))
            config: Any = getattr(fused, "config", model.config)
            model.set_submodule(name, kind.from_experts_module(fused, config))


@torch.no_grad()
def check_experts(model: nn.Module, modifiers: Iterable[Any] = ()) -> None:
    """Refuse a model whose experts could not be saved, before anything is pruned.

    Args:
        model: the model, its experts made Linears of.
        modifiers: all of the recipe; those that quantize experts need per-expert names.

    Raises:
        ValueError: experts that cannot be brought back into the layout of the architecture.
    """
    seen: set[type] = set()
    containers = expert_containers(model)
    for name, container in containers.items():
        if type(container) not in seen and not _loaded_apart(container):
            seen.add(type(container))
            _check_round_trip(name, container, model)
    inside = tuple(f"{name}." for name in containers)
    for modifier in modifiers if inside else ():
        if not isinstance(modifier, QuantizationMixin):
            continue
        quantized = match_named_modules(model, modifier.resolved_targets, modifier.ignore)
        first = next((name for name, _ in quantized if name.startswith(inside)), None)
        if first is None:
            continue
        why = _why_not_quantized(model, modifier)
        if why:
            raise ValueError(
                f"{type(modifier).__name__} quantizes the expert {first}, but {why}; add "
                '"re:.*experts.*" to its ignore'
            )


def _why_not_quantized(model: nn.Module, modifier: QuantizationMixin) -> str:
    """Why quantized experts of a model cannot be read again; empty where they can."""
    if _per_expert_renamings(model) is None:
        return (
            f"checkpoints of {type(model).__name__} keep all experts of a layer in one tensor, "
            "which has no place for the scales of each"
        )
    for scheme in modifier.resolved_config.config_groups.values():
        weights, inputs = scheme.weights, scheme.input_activations
        if weights is not None and weights.type == "int" and inputs is not None:
            return "transformers reads no experts with integer activations"
    return ""


@contextmanager
def experts_as_read(model: nn.Module) -> Iterator[None]:
    """Give a model the experts that its architecture reads, while the block runs.

    Weights are moved, not copied: a fused tensor takes the place of the Linears' own, which become
    views of it and stay so. Experts that are offloaded are copied.

    Raises:
        ValueError: quantized experts of an architecture that cannot read them.
    """
    containers = expert_containers(model)
    apart = {n: c for n, c in containers.items() if any(map(is_module_quantized, c.modules()))}
    before = model.__dict__.get("_weight_conversions", None)
    fused: dict[str, LinearExperts2D] = {}
    try:
        for name, container in containers.items():
            if name not in apart and not _loaded_apart(container):
                model.set_submodule(name, _fuse(container, model))
                fused[name] = container
        if apart and not any(map(_loaded_apart, apart.values())):
            renamings = _per_expert_renamings(model)
            if renamings is None:
                raise ValueError(
                    f"the quantized experts of {next(iter(apart))} cannot be saved in the layout "
                    f"that {type(model).__name__} reads"
                )
            model._weight_conversions = renamings  # type: ignore[assignment]
        yield
    finally:
        for name, container in fused.items():
            model.set_submodule(name, container)
        if before is None:
            model.__dict__.pop("_weight_conversions", None)
        else:
            model._weight_conversions = before


def _source_class(container: LinearExperts2D) -> type[nn.Module] | None:
    """Return the class of the fused experts that a container was made of."""
    known = getattr(container, "_source_experts_cls", None)
    if known is not None:
        return known
    found = [fused for fused, cls in LinearExperts2D._registry.items() if cls is type(container)]
    return found[0] if len(found) == 1 else None


def _loaded_apart(container: LinearExperts2D) -> bool:
    """Whether the experts came as Linears from the file; their names are then right as they are."""
    return not hasattr(container, "_source_experts_cls") and type(container).__name__ == (
        "LinearExperts2D"
    )


def _empty_experts(container: LinearExperts2D, model: nn.Module) -> Any:
    """Return a fused module for the experts of a container, its tensors not filled.

    Raises:
        ValueError: its class is not known.
    """
    cls = _source_class(container)
    if cls is None:
        raise ValueError(f"{type(container).__name__} does not say which experts it replaces")
    config = getattr(container, "_source_config", None)
    if config is None:
        config = model.config.get_text_config()  # type: ignore[operator, union-attr]
    with torch.device("meta"):
        fused: Any = cls(config)
    with disable_onloading():
        first = next(container.parameters())
    device = torch.device("cpu") if first.is_meta else first.device  # meta: offloaded to disk
    for name, parameter in list(fused.named_parameters()):
        empty = torch.empty(parameter.shape, dtype=first.dtype, device=device)
        place, _, own = name.rpartition(".")
        filled = nn.Parameter(empty, requires_grad=parameter.requires_grad)
        setattr(fused.get_submodule(place), own, filled)
    # The layout; upstream sets it where transformers' decorator does not.
    for field in ("is_transposed", "is_concatenated", "has_bias", "has_gate"):
        setattr(fused, field, getattr(container, field))
    return fused.train(container.training)


def _views(
    fused: Any, index: int, expert: nn.Module, container: LinearExperts2D
) -> dict[str, Tensor]:
    """Return the part of the fused tensors that each parameter of one expert has its place in."""
    if isinstance(container, GroupedExperts):
        return container.views(fused, index)
    found = {}
    for name, _ in expert.named_parameters():
        projection, kind = name.split(".")  # such as gate_proj, weight
        suffix = "_bias" if kind == "bias" else ""
        together = "gate_up_proj" if fused.has_gate and projection != "down_proj" else projection
        tensor = getattr(fused, together + suffix).data[index]
        if kind == "weight" and fused.is_transposed:
            tensor = tensor.T
        if together == "gate_up_proj":
            second = projection == "up_proj"
            half = tensor.shape[0] // 2
            if isinstance(expert, GptOssExpertMLP):
                tensor = tensor[second::2]
            else:
                tensor = tensor[half:] if second else tensor[:half]
        found[name] = tensor
    return found


@torch.no_grad()
def _fuse(container: LinearExperts2D, model: nn.Module) -> nn.Module:
    fused = _empty_experts(container, model)
    for index in range(container.num_experts):
        expert: Any = container[index]
        parameters = dict(expert.named_parameters())
        views = _views(fused, index, expert, container)
        for name, view in views.items():
            view.copy_(parameters[name])
        with disable_onloading():  # what is kept, not what is moved to the device that computes
            for name, kept in expert.named_parameters():
                if kept.device == views[name].device:
                    kept.data = views[name]
    for module in fused.modules():
        offload_module(module, **get_cache_init_kwargs(container[0].down_proj))
    return fused


def _check_round_trip(name: str, container: LinearExperts2D, model: nn.Module) -> None:
    """Check that llm-compressor would read the fused form back as it is.

    Raises:
        ValueError: it would not.
    """
    last = container.num_experts - 1
    expert: Any = container[last]
    # Where they came from one by one, an own copy is compared: nothing of the model moves.
    own = {key: value.detach().clone() for key, value in expert.named_parameters()}
    try:
        fused = _empty_experts(container, model)
        for key, view in _views(fused, last, expert, container).items():
            view.copy_(own[key])
        again = copy.deepcopy(expert)
        for parameter in again.parameters():
            parameter.zero_()
        again.copy_from_experts_module(fused, last)
        same = all(torch.equal(own[key], value) for key, value in again.named_parameters())
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"the experts in {name} could not be saved again: {error}") from error
    if not same:
        raise ValueError(
            f"the experts in {name} could not be saved again: {type(container).__name__} has a "
            "layout that tamp-modifier does not know"
        )


def _per_expert_renamings(model: nn.Module) -> list[Any] | None:
    """Return transformers' conversions for a checkpoint in which every expert has tensors of its
    own.

    Returns:
        The conversions of the model, with those that fuse experts replaced by renamings of one
        expert's projection; None where the architecture's checkpoints hold fused tensors.
    """
    if not isinstance(model, PreTrainedModel):
        return None
    known: Any = getattr(model, "_weight_conversions", None)
    conversions = known or get_model_conversion_mapping(model, add_legacy=False)
    kept: list[Any] = []
    renamed = set()
    for conversion in conversions:
        targets = [target.replace("\\", "") for target in conversion._original_target_patterns]
        fused = next((f for f in _FUSED if targets[0].rstrip("$").endswith(f)), None)
        if fused is None or not isinstance(conversion, WeightConverter):
            kept.append(conversion)
            continue
        sources = [source.replace("\\", "") for source in conversion._original_source_patterns]
        found = [re.search(r"experts\.\*\.(\w+)\.weight$", source) for source in sources]
        if not all(found) or len(found) != len(_FUSED[fused]):
            return None
        for match, projection in zip(found, _FUSED[fused], strict=True):
            assert match is not None
            renaming = WeightRenaming(
                rf"\.experts\.(\d+)\.{match[1]}\.", rf".experts.\1.{projection}."
            )
            renaming.scope_prefix = conversion.scope_prefix
            renaming.base_model_prefix = conversion.base_model_prefix
            kept.append(renaming)
            renamed.add(projection)
    return kept if {"up_proj", "down_proj"} <= renamed else None
