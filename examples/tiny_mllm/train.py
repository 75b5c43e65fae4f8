"""Train the demo model: a LLaVA of about 6.7 million parameters, on pictures that we draw.

    python -m examples.tiny_mllm.train --output runs/tiny_mllm

First the vision tower and projector learn to tell in words what each patch shows, then everything
is trained end to end on questions. The run saves its state every three minutes and goes on from it
when it is started again; a run that was interrupted gives the same weights as one that was not.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor, nn

from examples.tiny_mllm.attention import packed_attention
from examples.tiny_mllm.data import PATCH_GROUPS, Batch, patch_batch, question_batch
from examples.tiny_mllm.model import build_model, export, plant_lookup, set_attention
from tamp_modifier.demo.evaluation import evaluate
from tamp_modifier.demo.processing import WordIds, build_processor


def patch_loss(
    features: Tensor, embeddings: Tensor, targets: Tensor, groups: list[Tensor]
) -> Tensor:
    """Make image features point towards the embeddings of the words that tell what they show.

    Args:
        features: Projected image features [n, 144, d].
        embeddings: Word embeddings [words, d].
        targets: Index into each group [n, 144, groups].
        groups: Word ids of each group.

    Returns:
        Mean cross entropy over patches and groups.
    """
    directions = F.normalize(features.float(), dim=-1)
    words = F.normalize(embeddings.float(), dim=-1)
    ground = targets[..., 1] == len(PATCH_GROUPS[1]) - 1
    total = features.new_zeros((), dtype=torch.float32)
    for index, group in enumerate(groups):
        logits = 20.0 * directions @ words[group].T
        loss = F.cross_entropy(
            logits.flatten(0, 1), targets[..., index].flatten(), reduction="none"
        )
        # Ground patches are many and easy, but only they show the pattern, in the last group.
        weight = torch.where(ground, 1.0 if index == len(groups) - 1 else 0.25, 1.0)
        importance = 2.0 if index == 0 else 1.0  # the kind is the hard one
        total = total + importance * (loss * weight.flatten()).sum() / weight.sum()
    return total / (len(groups) + 1)


def question_loss(model: Any, batch: Batch, groups: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted loss of the words, loss of the patches, share of right words at full weight."""
    inner = model.model
    embeddings = inner.get_input_embeddings().weight
    features = torch.stack(list(inner.get_image_features(batch["pixel_values"]).pooler_output))
    ids = batch["input_ids"]
    embedded = inner.get_input_embeddings()(ids)
    prefix = 2 + features.shape[1]
    embedded = torch.cat([embedded[:, :2], features.to(embedded.dtype), embedded[:, prefix:]], 1)
    hidden = inner.language_model(
        inputs_embeds=embedded,
        attention_mask=batch["attention_mask"],
        position_ids=batch["position_ids"],
        use_cache=False,
    ).last_hidden_state
    weights = batch["weights"][:, prefix:].flatten()
    logits = model.lm_head(hidden[:, prefix - 1 : -1]).float().flatten(0, 1)
    target = ids[:, prefix:].flatten()
    loss = F.cross_entropy(logits, target, reduction="none")
    loss = (loss * weights).sum() / weights.sum()
    answers = weights == 1.0
    right = (logits.argmax(-1) == target)[answers].float().mean()
    return loss, patch_loss(features, embeddings, batch["patch_targets"], groups), right


def learning_rate(step: int, arguments: argparse.Namespace) -> float:
    """Warm up, stay, and fall to 0 over the last part of the run, as a factor of the peak."""
    begin = 0 if step < arguments.tower_steps else arguments.tower_steps
    warm = min(1.0, (step - begin + 1) / 100)
    fall = arguments.decay * arguments.steps
    return warm * min(1.0, (arguments.steps - step) / fall)


def build_optimizer(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    """AdamW; only weight matrices decay."""
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        matrix = parameter.ndim >= 2 and "embed" not in name
        groups.setdefault((matrix, "vision_tower" in name), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": 0.05 if matrix else 0.0,
                "peak": rate,
                "tower": tower,
            }
            for (matrix, tower), parameters in groups.items()
        ],
        lr=rate,
        betas=(0.9, 0.95),
        fused=True,
    )


def save_state(path: Path, model: Any, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write the state so that an interruption never leaves half a file."""
    partial = path.with_suffix(".partial")
    torch.save(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, partial
    )
    os.replace(partial, path)


def train(arguments: argparse.Namespace) -> Any:
    """Train, or go on training, and return the model."""
    from transformers import AttentionInterface

    torch.manual_seed(arguments.seed)
    words = WordIds()
    processor = build_processor()
    model = build_model(words, arguments.layers, arguments.tower_layers).train()
    optimizer = build_optimizer(model, arguments.rate)
    groups = [torch.tensor(words(" ".join(group))) for group in PATCH_GROUPS]
    state_path = arguments.output / "state.pt"
    arguments.output.mkdir(parents=True, exist_ok=True)
    step = 0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
        print(f"going on from step {step}", flush=True)
    AttentionInterface.register("packed", packed_attention)
    set_attention(model, "packed")
    embeddings = model.get_input_embeddings()
    parameters = list(model.parameters())
    print(f"{sum(p.numel() for p in parameters) / 1e6:.2f} million parameters", flush=True)
    begin, saved, first = time.time(), time.time(), step
    mean = right_mean = 0.0
    stop = arguments.steps if arguments.stop is None else min(arguments.stop, arguments.steps)
    progress = Progress(
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        disable=not sys.stdout.isatty(),
    )
    bar = progress.add_task("training", total=arguments.steps, completed=step)
    progress.start()
    while step < stop:
        for group in optimizer.param_groups:
            rate = group["peak"] * learning_rate(step, arguments)
            late = step >= arguments.tower_steps
            group["lr"] = rate * ((0.5 if late else 1.5) if group["tower"] else 1.0)
        if step < arguments.tower_steps:
            hardness = min(1.0, max(0.0, 2 * step / arguments.tower_steps - 0.3))
            batch = patch_batch(arguments.seed, step, arguments.tower_batch, hardness)
            with torch.autocast("cpu", torch.bfloat16):
                features = model.model.get_image_features(batch["pixel_values"]).pooler_output
                features = torch.stack(list(features))
                loss = patch_loss(features, embeddings.weight, batch["patch_targets"], groups)
            shown, right = loss, torch.zeros(())
        else:
            if step == arguments.tower_steps:
                plant_lookup(model, words)
            batch = question_batch(words, arguments.seed, step, arguments.batch, arguments.chunks)
            with torch.autocast("cpu", torch.bfloat16):
                shown, patches, right = question_loss(model, batch, groups)
                loss = shown + arguments.patch_weight * patches
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        progress.update(bar, completed=step)
        keep = 0.98 if step - first > 20 else 0.0
        mean = keep * mean + (1 - keep) * shown.item()
        right_mean = keep * right_mean + (1 - keep) * right.item()
        if step % arguments.log_every == 0 or step == arguments.tower_steps:
            pace = (time.time() - begin) / (step - first)
            print(
                f"{time.strftime('%H:%M:%S')} step {step}/{arguments.steps} loss {mean:.3f} "
                f"right {right_mean:.3f} norm {float(norm):.2f} {pace:.3f} s/step "
                f"left {pace * (arguments.steps - step) / 60:.1f} min",
                flush=True,
            )
        if step % arguments.evaluate_every == 0 and step > arguments.tower_steps:
            set_attention(model, "sdpa")
            with torch.autocast("cpu", torch.bfloat16):
                scores = evaluate(model, processor, arguments.evaluate_samples, seed=1)
            tasks = " ".join(f"{task}={100 * value:.0f}" for task, value in scores.tasks.items())
            print(
                f"  picture {100 * scores.picture:.1f} text {100 * scores.text:.1f} | {tasks} "
                f"({scores.seconds:.0f} s)",
                flush=True,
            )
            if arguments.export is not None:
                export(model, arguments.export)
            set_attention(model, "packed")
        if time.time() - saved > arguments.save_seconds:
            save_state(state_path, model, optimizer, step)
            saved = time.time()
    progress.stop()
    save_state(state_path, model, optimizer, step)
    set_attention(model, "sdpa")
    if arguments.export is not None:
        export(model, arguments.export)
    return model


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", type=Path, required=True, help="folder of the run's state")
    add("--export", type=Path, help="folder for model and processor")
    add("--steps", type=int, default=4750, help="steps in all; the rate falls to 0 at the last")
    add("--stop", type=int, help="stop after this step, to go on later")
    add("--tower-steps", type=int, default=900, help="steps of the vision tower alone, at first")
    add("--tower-batch", type=int, default=24, help="pictures per step of the tower alone")
    add("--batch", type=int, default=8, help="pictures per step")
    add("--chunks", type=int, default=5, help="chunks of 40 text tokens per picture")
    add("--rate", type=float, default=1e-3, help="peak learning rate")
    add("--decay", type=float, default=0.2, help="share of the steps in which the rate falls")
    add("--patch-weight", type=float, default=0.3, help="weight of the patch loss beside the words")
    add("--layers", type=int, default=6, help="layers of the language model")
    add("--tower-layers", type=int, default=4, help="layers of the vision tower")
    add("--seed", type=int, default=0)
    add("--log-every", type=int, default=50)
    add("--evaluate-every", type=int, default=500)
    add("--evaluate-samples", type=int, default=20)
    add("--save-seconds", type=float, default=180.0)
    return parser.parse_args(argv)


ENVIRONMENT = {
    "GOMP_SPINCOUNT": "100000",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(128 << 20),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""Keeps freed memory in the process; otherwise glibc returns and fetches it in every step, which
halves the speed. Threads wait a moment before they sleep: beside other programs that was 1.4 times
as fast as sleeping at once."""


def main() -> None:
    """Restart once with `ENVIRONMENT`, which must be set before the process begins, and train."""
    arguments = parse()
    if any(name not in os.environ for name in ENVIRONMENT):
        command = [sys.executable, "-m", "examples.tiny_mllm.train", *sys.argv[1:]]
        os.execve(sys.executable, command, {**ENVIRONMENT, **os.environ})
    train(arguments)


if __name__ == "__main__":
    main()
