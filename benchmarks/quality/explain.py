"""What the published method looks at: attention, diversity, selection.

python -m benchmarks.quality --explain docs/figures --models box smolav
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.quality.job import Job
from benchmarks.quality.models import QualityModel
from benchmarks.quality.runner import prune
from tamp_modifier.calibration.attention import last_token_attention
from tamp_modifier.report import PruningReport, linear_type
from tamp_modifier.report.figures import COLOURS, MARKERS, diversity_figure, new_figure, save_figure
from tamp_modifier.tokens import MODALITY_NAMES, modality_token_ids, token_types

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAMPLES = 8
SPARSITY = 0.5
SHOWN = ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj")


def draw(model: QualityModel, folder: Path, samples: int = SAMPLES) -> list[Path]:
    """Write the figures ``quality-WHAT-MODEL.png``: attention, diversity and, of pictures,
    selection."""
    from tamp_modifier.quiet import quiet

    model.check()
    with quiet():
        batches = model.batches(0, samples)
        shares = attention_shares(model.load(), batches)
        report = published_report(model, batches)
    figures = {"attention": attention_figure(*shares), "diversity": diversity_figure(report)}
    pictures = [number for number, batch in enumerate(batches) if "pixel_values" in batch]
    if pictures:
        figures["selection"] = selection_figure(report, batches, pictures[0])
    return [
        save_figure(figure, folder / f"quality-{what}-{model.name}.png")
        for what, figure in figures.items()
    ]


def published_report(model: QualityModel, batches: list[dict[str, torch.Tensor]]) -> PruningReport:
    """Return the report of TAMP as published."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        job = Job(model, SPARSITY, "0:0", batches, model.load())
        prune(job, "tamp", {"report_path": str(path)})
        return PruningReport.load(path)


@torch.inference_mode()
def attention_shares(
    model: Any, batches: Sequence[dict[str, torch.Tensor]]
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Share of the last token's attention that every modality gets, in the samples that have it.

    Args:
        model: the dense model.
        batches: samples of batch size 1 without padding.

    Returns:
        Modality -> share in every decoder layer, mean over heads and samples; and modality -> share
        of the tokens of these samples.
    """
    decoder = model.get_decoder()
    decoder.set_attn_implementation("eager")
    weights: list[torch.Tensor] = []  # [1, heads, tokens, tokens] of every layer
    hooks = [
        layer.self_attn.register_forward_hook(lambda _, __, output: weights.append(output[1]))
        for layer in decoder.layers
    ]
    ids = modality_token_ids(model.config)
    by_layer: dict[str, list[torch.Tensor]] = {}
    tokens: dict[str, list[float]] = {}
    for batch in batches:
        types = token_types(batch["input_ids"], ids)[0]
        weights.clear()
        model(**batch, use_cache=False)
        rows = torch.stack(
            [last_token_attention(w.float(), torch.ones(1, len(types)))[0] for w in weights]
        )
        for number in types.unique().tolist():
            name, mine = MODALITY_NAMES[number], types == number
            by_layer.setdefault(name, []).append(rows[:, mine].sum(1))
            tokens.setdefault(name, []).append(float(mine.float().mean()))
    for hook in hooks:
        hook.remove()
    means = {name: torch.stack(values).mean(0).tolist() for name, values in by_layer.items()}
    return means, {name: sum(values) / len(values) for name, values in tokens.items()}


def attention_figure(by_layer: dict[str, list[float]], tokens: dict[str, float]) -> Figure:
    """Share of attention by depth, next to the share of tokens."""
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(6.5, 3.4)
    axes = figure.add_subplot()
    for index, (name, values) in enumerate(by_layer.items()):
        axes.plot(values, color=COLOURS[index], marker=MARKERS[index], label=f"{name}, attention")
        label = f"{name}, share of tokens"
        axes.axhline(tokens[name], color=COLOURS[index], linestyle="--", linewidth=1, label=label)
    axes.set_ylim(0, 1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("decoder layer")
    axes.set_ylabel("share")
    axes.set_title("attention of the last token", fontsize=10)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def selection_figure(
    report: PruningReport, batches: Sequence[dict[str, torch.Tensor]], sample: int
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
