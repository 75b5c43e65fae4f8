"""transformers' Trainer with a teacher in place of labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from tamp_modifier.data import Collator
from tamp_modifier.files import whole_file
from tamp_modifier.recovery.batches import NUMBERS, Numbered, NumberedCollator
from tamp_modifier.recovery.budget import Budget, schedule
from tamp_modifier.recovery.losses import counted_positions, logits_at
from tamp_modifier.recovery.settings import RecoverySettings
from tamp_modifier.recovery.teacher import Said, Teacher

TRAINED_FILE = "trained.safetensors"
NEVER = 10**9
"""Steps: more than any run has. Trainer would compare at fixed steps, `Budget` does it in time."""


class Diverged(RuntimeError):
    """A loss that is not finite; says at which step."""


class Recovery(Trainer):
    """Train a student on the distribution of a teacher.

    Args:
        student: the model, made ready by `trained.make_trainable`.
        teacher: compares.
        training: samples that are trained on.
        held_out: samples that are compared.
        collator: joins samples, padding on the right.
        placeholders: ids of media tokens.
        settings: batch size, accumulation, temperature.
        learning_rate: highest of the schedule.
        budget: ends the run.
        folder: where the states of the run are kept.
        bf16: computes in bfloat16 under autocast.
        report: called with the fraction of the run and the last held-out loss, or None.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Teacher,
        training: Numbered,
        held_out: Numbered,
        collator: Collator,
        placeholders: Sequence[int],
        settings: RecoverySettings,
        learning_rate: float,
        budget: Budget,
        folder: Path,
        bf16: bool = False,
        report: Callable[[float, float | None], None] = lambda fraction, loss: None,
    ) -> None:
        self.teacher = teacher
        self.placeholders = placeholders
        self.budget = budget
        self.compares_hidden = settings.hidden > 0
        arguments = TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=settings.batch_size,
            per_device_eval_batch_size=settings.batch_size,
            gradient_accumulation_steps=settings.accumulation,
            gradient_checkpointing=settings.checkpointing,
            learning_rate=learning_rate,
            weight_decay=0.0,
            max_steps=NEVER,
            optim=_optimizer(),
            bf16=bf16,
            use_cpu=not torch.cuda.is_available(),
            eval_strategy="steps",
            eval_steps=NEVER,
            save_strategy="steps",
            save_steps=NEVER,
            save_total_limit=2,
            load_best_model_at_end=True,
            metric_for_best_model="eval_loss",
            greater_is_better=False,
            logging_strategy="no",
            remove_unused_columns=False,
            dataloader_pin_memory=torch.cuda.is_available(),
            disable_tqdm=True,
            report_to=[],
            seed=settings.seed,
        )
        # Trainer would cut batches in pieces for all GPUs that it sees.
        arguments._n_gpu = min(1, arguments.n_gpu)
        super().__init__(
            model=student,
            args=arguments,
            data_collator=NumberedCollator(collator),
            train_dataset=training,
            eval_dataset=held_out,
            callbacks=[budget, _Reporter(budget, report)],
        )
        self.remove_callback(PrinterCallback)  # the caller shows how far the run is
        # The loss is a mean of this forward pass, whatever the model's forward could take.
        self.model_accepts_loss_kwargs = False

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return what the teacher says of the student's outputs.

        Raises:
            Diverged: it is not finite.
        """
        inputs = dict(inputs)
        numbers = inputs.pop(NUMBERS)
        counted = counted_positions(
            inputs["input_ids"], inputs["attention_mask"], self.placeholders
        )
        logits, hidden = logits_at(model, inputs, counted, self.compares_hidden)
        loss = self.teacher.loss(inputs, numbers, Said(logits, hidden, counted))
        if not math.isfinite(float(loss.detach())):
            raise Diverged(f"the loss is {float(loss.detach())} at step {self.state.global_step}")
        if model.training:
            self._count(inputs)
        return (loss, logits) if return_outputs else loss

    def _count(self, inputs: dict[str, Tensor]) -> None:
        self.budget.tokens += int(inputs["attention_mask"].sum())
        self.budget.samples += len(inputs["attention_mask"])

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the loss alone: logits of a whole vocabulary are not kept."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, inputs).detach(), None, None

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Write what is trained, under the names that the student has in memory.

        Trainer saves a model under the names of its checkpoint, and then does not find them when it
        loads a state back.
        """
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: p.detach().cpu().contiguous() for name, p in self._moving().items()}
        with whole_file(folder / TRAINED_FILE) as temporary:
            save_file(state, temporary)
        self.budget.save(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.load_trained(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        if self.state.best_model_checkpoint is not None:
            self.load_trained(Path(self.state.best_model_checkpoint))

    @torch.no_grad()
    def load_trained(self, folder: Path) -> None:
        """Bring a state back.

        Args:
            folder: where it was saved.

        Raises:
            ValueError: it is of another model or of other settings.
        """
        state, moving = load_file(folder / TRAINED_FILE), self._moving()
        if {n: v.shape for n, v in state.items()} != {n: p.shape for n, p in moving.items()}:
            raise ValueError(f"{folder} is a state of another model, or of other settings")
        for name, parameter in moving.items():
            parameter.copy_(state[name])

    def _moving(self) -> dict[str, nn.Parameter]:
        model = self.accelerator.unwrap_model(self.model)
        return {name: p for name, p in model.named_parameters() if p.requires_grad}

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> Any:
        """Follow the budget, not the number of steps, which nobody knows beforehand."""
        chosen = self.optimizer if optimizer is None else optimizer
        assert chosen is not None
        self.lr_scheduler = LambdaLR(chosen, lambda step: schedule(self.budget.fraction))
        return self.lr_scheduler


def last_state(folder: Path) -> Path | None:
    """Return the last state of a run that was written whole; None if there is none."""
    # Trainer writes trainer_state.json last.
    whole = [file.parent for file in folder.glob("checkpoint-*/trainer_state.json")]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


class _Reporter(TrainerCallback):
    def __init__(self, budget: Budget, report: Callable[[float, float | None], None]) -> None:
        self.budget, self.report = budget, report

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        curve = self.budget.curve
        self.report(self.budget.fraction, curve[-1]["loss"] if curve else None)


def _optimizer() -> str:
    """Paged and in 8 bits where bitsandbytes and a GPU are there; else the fused one."""
    if not torch.cuda.is_available():
        return "adamw_torch_fused"
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        return "adamw_torch_fused"
    return "paged_adamw_8bit"
