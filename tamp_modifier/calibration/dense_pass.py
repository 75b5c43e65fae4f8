"""An extra pass over the dense model, before anything is pruned."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from llmcompressor.args.dataset_arguments import DatasetArguments
from llmcompressor.core import Event, State, create_session
from llmcompressor.modifiers import Modifier
from llmcompressor.pipelines.registry import CalibrationPipeline

from tamp_modifier import progress
from tamp_modifier.calibration.loader import RepeatableLoader
from tamp_modifier.calibration.observer import Observer


class _Observe(Modifier):
    """The recipe of the nested session: it only observes."""

    requires_calibration_data: bool = True
    observer: Any
    layers: int
    done: int = 0

    def on_initialize(self, state: State, **kwargs: Any) -> bool:
        return True

    def on_calibration_start(self, state: State, event: Event, **kwargs: Any) -> None:
        self.observer.register(state.model, self.register_hook)

    def on_sequential_epoch_end(  # type: ignore[override]
        self, state: State, event: Event, **kwargs: Any
    ) -> None:
        self.done += 1
        progress.tell("dense pass", min(self.done, self.layers), self.layers)

    def on_calibration_end(self, state: State, event: Event, **kwargs: Any) -> None:
        self.remove_hooks()


def run_dense_pass(
    model: torch.nn.Module,
    loader: RepeatableLoader,
    observer: Observer,
    layer_classes: Iterable[str],
    pipeline: str,
    tracing_ignore: Iterable[str] = (),
) -> None:
    """Run all samples through the model once, in a session of its own.

    It has to happen at the start of calibration: at initialization no session can be nested, and
    earlier modifiers of the recipe have not changed the model yet.

    Args:
        model: the model; not changed.
        loader: the calibration batches.
        observer: its hooks are registered for this pass.
        layer_classes: class names of the decoder layers. By default vision blocks are sequential
            targets too; here they would only add subgraphs.
        pipeline: "auto", "sequential" or "basic"; what "auto" does with a model that cannot be
            traced is `upstream.fallback.calibrating`'s, within which this is called.
        tracing_ignore: function names that tracing skips, besides the default ones.
    """
    classes = set(layer_classes)
    layers = sum(type(module).__name__ in classes for module in model.modules())
    arguments = DatasetArguments(sequential_targets=sorted(classes), propagate_error=False)
    arguments.tracing_ignore = [*arguments.tracing_ignore, *tracing_ignore]
    observe = _Observe(observer=observer, layers=layers)
    with create_session() as session:
        session.initialize(
            model=model,
            recipe=[observe],  # type: ignore[arg-type]
            calib_data=loader,
            copy_data=False,
        )
        name = "sequential" if pipeline == "auto" else pipeline
        run = CalibrationPipeline.load_from_registry(name)
        try:
            run(model, loader, arguments)
        finally:
            observe.remove_hooks()
        session.finalize()
