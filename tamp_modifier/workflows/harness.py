"""Scores of a model on tasks of lm-evaluation-harness, which the extra "eval" installs.

The tasks are those of the command ``lm_eval``, with its seeds and without a chat template, so that
the numbers are the ones that people cite. A question is text: a model that also sees or hears
answers it with its language model alone.
"""

from __future__ import annotations

import difflib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

from tamp_modifier.messages import some
from tamp_modifier.workflows.models import load_config, load_processor, load_to_run
from tamp_modifier.workflows.precision import CPU

DRAWS = 1000
"""Of the bootstrap, by which the harness estimates the error of metrics that are no means."""


@dataclass(frozen=True)
class Metric:
    """One metric of a task.

    Attributes:
        value: as the harness gives it; an accuracy is 0 to 1.
        stderr: its standard error; None where the harness estimates none.
        higher_is_better: which way is better; None if the task does not say.
    """

    value: float
    stderr: float | None
    higher_is_better: bool | None


@dataclass(frozen=True)
class HarnessScore:
    """What a model reaches in one task, or in a group of tasks.

    Attributes:
        samples: questions that were asked.
        fewshot: examples before each; None for a group whose tasks differ in it.
        version: of the task.
        metrics: by name, "acc" or, where a filter chose the answer, "exact_match,strict-match".
    """

    samples: int
    fewshot: int | None
    version: Any
    metrics: dict[str, Metric]


@dataclass(frozen=True)
class Tasks:
    """Tasks with their data, ready to be asked.

    Attributes:
        loaded: of the harness: tasks and groups by name.
        warnings: what the user should know about them.
    """

    loaded: Any
    warnings: list[str] = field(default_factory=list)


def harness_version() -> str:
    """Return the version of lm-evaluation-harness.

    Raises:
        ImportError: it is not installed; names the extra.
    """
    try:
        from lm_eval import __version__
    except ImportError as error:
        raise ImportError(
            f'--tasks needs lm-evaluation-harness: pip install "tamp-modifier[eval]" ({error})'
        ) from None
    return __version__


def load_tasks(
    names: Sequence[str], include: Path | None = None, fewshot: int | None = None
) -> Tasks:
    """Find tasks and load their data, before any model is.

    Args:
        names: of tasks, groups and tags of the harness, or patterns such as "arc_*".
        include: a folder with tasks of one's own, as YAML.
        fewshot: examples before each question; None as each task says.

    Raises:
        ImportError: the harness is not installed.
        ValueError: a task that is not known, cannot be loaded, or cannot be asked here.
        OSError: no such folder.
    """
    harness_version()
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

    manager = _manager(names, include)
    matches = [manager.match_tasks([name]) for name in names]
    for name, found in zip(names, matches, strict=True):
        if not found:
            near = difflib.get_close_matches(name, manager.all_tasks)
            hint = f"; there is {', '.join(near)}" if near else ""
            raise ValueError(f"lm-evaluation-harness knows no task {name!r}{hint}")
    wanted = list(dict.fromkeys(task for found in matches for task in found))
    random.seed(DEFAULT_RANDOM_SEED)  # some tasks shuffle the choices while they are loaded
    try:
        loaded = manager.load(wanted)
    except Exception as error:  # yaml, datasets and the tasks' own code raise many kinds
        text = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"{some(names)}: the tasks cannot be loaded: {text}") from None
    warnings = []
    for name, task in loaded["tasks"].items():
        _refuse(name, task)
        own = task.get_config("num_fewshot")
        if fewshot and own == 0:  # as lm_eval does: the prompt has its examples in it, or must not
            warnings.append(f"task {name} takes no examples, so --num-fewshot is not used")
        elif fewshot is not None or own is None:
            task.set_config(key="num_fewshot", value=fewshot or 0)
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    return Tasks(loaded, warnings)


def _manager(names: Sequence[str], include: Path | None) -> Any:
    """Return an index of the tasks: the user's own alone where they are all that is asked for.

    To read the thousands of files of the harness takes seconds.
    """
    from lm_eval.tasks import TaskManager

    if include is None:
        return TaskManager()
    if not include.is_dir():
        raise NotADirectoryError(20, "--include-path must be a folder with tasks", str(include))
    own = TaskManager(include_path=str(include), include_defaults=False)
    if set(names) <= set(own.all_subtasks):
        return own
    return TaskManager(include_path=str(include))


def _refuse(name: str, task: Any) -> None:
    """Refuse what the harness would refuse only once the model is loaded."""
    if getattr(task, "MULTIMODAL", False):
        raise ValueError(f"task {name} asks about pictures or sounds; --data can, --tasks cannot")
    if getattr(task, "UNSAFE_CODE", False):
        raise ValueError(
            f"task {name} runs programs that the model writes; save the model and run lm_eval "
            "with --confirm_run_unsafe_code, in a sandbox"
        )


def score_tasks(
    model: str,
    tasks: Tasks,
    limit: int | None = None,
    batch_size: int = 1,
    dtype: str = "auto",
) -> dict[str, HarnessScore]:
    """Ask a model all questions of the tasks, on an accelerator where there is one.

    Args:
        model: folder, packed ones too, or name of the model.
        tasks: of `load_tasks`; the same may be given to several models.
        limit: the first questions of each task, so many; None for all.
        batch_size: questions at once.
        dtype: type of the weights, "auto" as in `models.load_to_run`.

    Returns:
        Scores by task, and by group where the harness sums one up.

    Raises:
        ValueError: a model that cannot be loaded, or logits that are not finite.
    """
    import torch
    from lm_eval.defaults import DEFAULT_OTHER_SEED
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    processor = load_processor(model)
    here = torch.accelerator.current_accelerator(check_available=True) or CPU
    loaded = load_to_run(model, load_config(model), dtype, here).to(here)
    asked: Any = HFLM(
        pretrained=loaded,
        tokenizer=getattr(processor, "tokenizer", processor),
        backend="causal",  # else a model that sees, too, is not known to be one
        batch_size=batch_size,
    )
    for task in tasks.loaded["tasks"].values():
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)  # the same examples for every model
    torch.manual_seed(DEFAULT_OTHER_SEED)
    found = evaluate(
        asked,
        task_dict=tasks.loaded,
        limit=limit,
        bootstrap_iters=DRAWS,
        log_samples=False,
    )
    _check_finite(tasks)
    return _scores(found)


def _check_finite(tasks: Tasks) -> None:
    for name, task in tasks.loaded["tasks"].items():
        for instance in task.instances:
            for answer in instance.resps:
                value = answer[0] if isinstance(answer, tuple) else answer
                if isinstance(value, float) and value != value:
                    raise ValueError(f"task {name}: the logits of the model are not finite")


def _scores(found: Mapping[str, Any]) -> dict[str, HarnessScore]:
    """Return what the harness found, without its text and its groups that have no number."""
    scores = {}
    for name, values in found["results"].items():
        metrics = {}
        for key, value in values.items():
            metric, comma, chosen = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, Real):
                continue
            error = values.get(f"{metric}_stderr,{chosen}")
            metrics[metric if chosen == "none" else key] = Metric(
                float(value),
                float(error) if isinstance(error, Real) else None,
                found["higher_is_better"].get(name, {}).get(metric),
            )
        if metrics:
            scores[name] = HarnessScore(
                values.get("sample_len", 0),
                found["n-shot"].get(name),
                found["versions"].get(name),
                metrics,
            )
    return scores
