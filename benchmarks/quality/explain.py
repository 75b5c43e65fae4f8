"""What the published method looks at, on the model in the box: attention, diversity, selection.

python -m benchmarks.quality --explain docs/figures
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.quality.methods import Job
from benchmarks.quality.models import BoxModel
from benchmarks.quality.runner import prune
from tamp_modifier.attention import last_token_attention
from tamp_modifier.figures import COLOURS, MARKERS, diversity_figure, new_figure, save_figure
from tamp_modifier.report import PruningReport, linear_type
from tamp_modifier.tokens import MODALITY_NAMES, modality_token_ids, token_types

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAMPLES = 8
SPARSITY = 0.5
SHOWN = ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj")


def draw(folder: Path, samples: int = SAMPLES) -> list[Path]:
    """Writes ``quality-attention.png``, ``quality-diversity.png`` and ``quality-selection.png``."""
    from tamp_modifier.demo.run import quiet

    with quiet():
        model = BoxModel(Path())
        batches = model.batches(0, samples)
        shares = attention_shares(model.load(), batches)
        report = published_report(model, batches)
    return [
        save_figure(attention_figure(*shares), folder / "quality-attention.png"),
        save_figure(diversity_figure(report), folder / "quality-diversity.png"),
        save_figure(selection_figure(report, batches), folder / "quality-selection.png"),
    ]


def published_report(model: BoxModel, batches: list[dict[str, torch.Tensor]]) -> PruningReport:
    """The report of TAMP as published."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        job = Job(model, SPARSITY, "0:0", batches, model.load())
        prune(job, "tamp", {"report_path": str(path)})
        return PruningReport.load(path)


@torch.inference_mode()
def attention_shares(
    model: Any, batches: Sequence[dict[str, torch.Tensor]]
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Share of the last token's attention that every modality gets.

    Args:
        model: the model in the box.
        batches: samples of batch size 1 without padding.

    Returns:
        Modality -> share in every decoder layer, mean over heads and samples; and modality -> share
        of all tokens.
    """
    model.set_attn_implementation("eager")
    ids = modality_token_ids(model.config)
    by_layer: dict[str, torch.Tensor] = {}
    tokens: dict[str, float] = {}
    for batch in batches:
        types = token_types(batch["input_ids"], ids)[0]
        weights = model(**batch, output_attentions=True, use_cache=False).attentions
        rows = torch.stack(
            [last_token_attention(w.float(), torch.ones(1, len(types)))[0] for w in weights]
        )
        for number in types.unique().tolist():
            name, mine = MODALITY_NAMES[number], types == number
            got = rows[:, mine].sum(1) / len(batches)
            by_layer[name] = by_layer.get(name, torch.zeros(len(rows))) + got
            tokens[name] = tokens.get(name, 0.0) + float(mine.float().mean()) / len(batches)
    return {name: values.tolist() for name, values in by_layer.items()}, tokens


def attention_figure(by_layer: dict[str, list[float]], tokens: dict[str, float]) -> Figure:
    """Share of attention by depth, next to the share of tokens."""
    figure = new_figure(6.5, 3.4)
    axes = figure.add_subplot()
    for index, (name, values) in enumerate(by_layer.items()):
        axes.plot(values, color=COLOURS[index], marker=MARKERS[index], label=f"{name}, attention")
        label = f"{name}, share of tokens"
        axes.axhline(tokens[name], color=COLOURS[index], linestyle="--", linewidth=1, label=label)
    axes.set_ylim(0, 1)
    axes.set_xticks(range(len(next(iter(by_layer.values())))))
    axes.set_xlabel("decoder layer")
    axes.set_ylabel("share")
    axes.set_title("attention of the last token", fontsize=10)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def selection_figure(
    report: PruningReport, batches: Sequence[dict[str, torch.Tensor]], sample: int = 0
) -> Figure:
    """Image tokens that AMIA picked for some Linears of the first, middle and last layer."""
    pixels = batches[sample]["pixel_values"][0].float()
    picture = (pixels - pixels.amin()) / (pixels.amax() - pixels.amin())
    types = report.token_types[sample]
    places = [index for index, kind in enumerate(types) if MODALITY_NAMES[kind] == "image"]
    side = round(len(places) ** 0.5)
    patch = picture.shape[-1] / side
    layers = list(dict.fromkeys(linear.layer for linear in report.linears.values()))
    layers = [layers[0], layers[len(layers) // 2], layers[-1]]
    figure = new_figure(2.3 * len(SHOWN), 2.5 * len(layers))
    grid = figure.subplots(len(layers), len(SHOWN), squeeze=False)
    for row, layer in zip(grid, layers, strict=True):
        for axes, kind in zip(row, SHOWN, strict=True):
            axes.imshow(picture.permute(1, 2, 0).numpy())
            axes.set_axis_off()
            picked = next(
                linear.selected[sample]
                for name, linear in report.linears.items()
                if linear.layer == layer and linear_type(name) in (kind, kind.split(".")[-1])
            )
            image = [places.index(token) for token in picked if token in places]
            for place in image:
                x, y = place % side * patch - 0.5, place // side * patch - 0.5
                axes.add_patch(_frame(x, y, patch))
            text = len(picked) - len(image)
            number = layer.rpartition(".")[2]
            axes.set_title(
                f"layer {number}, {kind.split('.')[-1]}\n{len(image)} image, {text} text",
                fontsize=8,
            )
    return figure


def _frame(x: float, y: float, size: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), size, size, fill=False, edgecolor=COLOURS[3], linewidth=1.6)
