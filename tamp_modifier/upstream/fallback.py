"""Run a model as a whole where llm-compressor's sequential pipeline cannot cut it into layers.

The sequential pipeline traces the model and cuts the graph at the decoder layers. That goes wrong
in three ways: tracing raises (BLIP-2, Chameleon, Emu3); the graph leaves decoder layers out; or its
pieces do not compute what the model computes, as when layers hand keys and values to later ones
through a dict (Gemma 3n, Gemma 4 E), which every piece makes anew. All three are found before
calibration begins. The pipeline then gets one piece, the model itself, and so calibrates as the
basic pipeline does.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from compressed_tensors.offload.cache import OffloadCache
from compressed_tensors.utils import match_named_modules, patch_attr
from llmcompressor.modifiers.utils.hooks import HooksMixin
from llmcompressor.pytorch.utils.helpers import tensors_to_device
from llmcompressor.utils.dev import get_main_device
from llmcompressor.utils.helpers import calibration_forward_context
from loguru import logger
from torch import Tensor, nn

from tamp_modifier.calibration.distributed import gather
from tamp_modifier.calibration.targets import find_decoder_layers

CLOSE = 0.01
"""Largest difference from the model's own hidden states, relative to the largest of these."""


class _Settings:
    pipeline = "auto"
    verdicts: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()


@contextmanager
def calibrating(pipeline: str | None, anew: bool = False) -> Iterator[None]:
    """Say how the sequential pipeline takes models, while the block runs.

    Args:
        pipeline: "auto" (a model that cannot be cut runs as a whole), "sequential" (it is refused)
            or "basic" (every model runs as a whole); None leaves it as it is.
        anew: forget what was found of models before.
    """
    if anew:
        _Settings.verdicts.clear()
    with patch_attr(_Settings, "pipeline", pipeline or _Settings.pipeline):
        yield


@dataclass
class WholeModel:
    """The only piece of a model that is not cut; stands in for llm-compressor's `Subgraph`.

    Attributes:
        input_names: names of the model inputs.
        consumed_names: none; there is no next piece.
    """

    input_names: set[str]
    consumed_names: set[str] = field(default_factory=set)

    def forward(self, model: nn.Module, **inputs: Any) -> dict[str, Any]:
        """Run the model on one batch. Gives nothing, as nothing comes after it."""
        # The pipeline's second pass, without hooks, only makes inputs of the next piece. Modules
        # that were moved to the device that computes go back: there need not be room for all.
        if not HooksMixin._HOOKS_DISABLED:
            with patch_attr(OffloadCache, "offloading_disabled", False):
                model(**{name: value for name, value in inputs.items() if value is not None})
        return {}

    def submodules(self, model: nn.Module, recurse: bool = True) -> list[nn.Module]:
        """Return all modules of the model."""
        return list(model.modules())


def traced_or_whole(
    trace: Callable[[], list[Any]],
    model: nn.Module,
    batch: Mapping[str, Any],
    input_names: Sequence[str],
    sequential_targets: Sequence[str],
) -> list[Any]:
    """Return the pieces of a traced model, or the model as one piece where tracing fails.

    Args:
        trace: makes the pieces.
        model: the model.
        batch: one of its calibration batches.
        input_names: the model inputs of all batches.
        sequential_targets: names or classes at which the model is cut.

    Raises:
        RuntimeError: tracing fails, and no model may run as a whole.
    """
    if _Settings.pipeline == "basic":
        return [WholeModel(set(input_names))]
    pieces: list[Any] = []
    if model not in _Settings.verdicts:
        reason = ""
        try:
            pieces = trace()
            reason = _what_is_wrong(pieces, model, batch, input_names, sequential_targets)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # models and the tracing of them raise many kinds
            logger.debug(f"tracing {type(model).__name__}: {error}")
            reason = f"tracing raises {type(error).__name__}"
        reason = next(filter(None, gather(reason)), "")  # all processes do the same
        if reason and _Settings.pipeline == "auto":
            logger.warning(
                f"{type(model).__name__} cannot be cut into its decoder layers ({reason}), so the "
                "basic pipeline calibrates it as a whole: no layer sees what pruning the layers "
                "before it did"
            )
        _Settings.verdicts[model] = reason
    reason = _Settings.verdicts[model]
    if not reason:
        return pieces or trace()
    if _Settings.pipeline == "sequential":
        raise RuntimeError(
            f"{type(model).__name__} cannot be cut into its decoder layers for the sequential "
            f'pipeline ({reason}); give oneshot pipeline="basic" and TAMPModifier '
            'dense_pipeline="basic"'
        )
    return [WholeModel(set(input_names))]


def _what_is_wrong(
    pieces: Sequence[Any],
    model: nn.Module,
    batch: Mapping[str, Any],
    input_names: Sequence[str],
    sequential_targets: Sequence[str],
) -> str:
    """Why the pieces are not the model; empty where they are."""
    try:
        layers = find_decoder_layers(model)
    except ValueError:
        return ""  # the user knows where to cut
    cuts = {module for _, module in match_named_modules(model, list(sequential_targets))}
    layers = {name: layer for name, layer in layers.items() if layer in cuts}
    if not layers:
        return ""
    called = {name for piece in pieces for name in _called(piece)}
    missing = [name for name in layers if name not in called]
    if missing:
        return f"{len(missing)} of {len(layers)} are not in the graph"

    inputs: Any = tensors_to_device(dict(batch), get_main_device())  # type: ignore[arg-type]

    def run_pieces() -> None:
        values = {**dict.fromkeys(input_names), **inputs}
        for piece in pieces:
            given = {name: values[name] for name in piece.input_names}
            outputs = piece.forward(model, **given)
            if piece is not pieces[-1]:  # whose output is the model's
                values = {n: v for n, v in values.items() if n not in piece.consumed_names}
                values.update(outputs)

    last = list(layers.values())[-1]
    with calibration_forward_context(model), HooksMixin.disable_hooks():
        right = _states_of(last, lambda: model(**inputs))
        try:
            got = _states_of(last, run_pieces)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            logger.debug(f"a piece of the graph of {type(model).__name__}: {error}")
            return f"a piece of the graph raises {type(error).__name__}"
    if right is None or got is None:
        return ""
    if right.shape != got.shape or not _close(right, got):
        return "the graph gives other hidden states than the model"
    return ""


def _called(piece: Any) -> list[str]:
    return [node.target for node in piece.graph.find_nodes(op="call_module")]


def _states_of(layer: nn.Module, run: Callable[[], Any]) -> Tensor | None:
    """Hidden states that a layer gives when something is run."""
    seen: list[Any] = []
    handle = layer.register_forward_hook(lambda _module, _args, output: seen.append(output))
    try:
        run()
    finally:
        handle.remove()
    output = seen[-1] if seen else None
    states = output[0] if isinstance(output, tuple | list) else output
    return states.detach() if isinstance(states, Tensor) else None


def _close(right: Tensor, got: Tensor) -> bool:
    # What is not finite is refused by name later.
    largest = right.float().abs().nan_to_num().max()
    difference = (right.float() - got.float()).nan_to_num().abs().max()
    return bool(difference <= CLOSE * largest)
