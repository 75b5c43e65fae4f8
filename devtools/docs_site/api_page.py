"""The pages of the Python API: which names are public, in which order; mkdocstrings fills them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Section(NamedTuple):
    """Names of one purpose.

    Attributes:
        title: heading.
        text: what they are for.
        names: by their full path.
    """

    title: str
    text: str
    names: tuple[str, ...]


SECTIONS = (
    Section(
        "Prune",
        "The one call that `tamp prune` makes; [Getting started](../getting-started.md) goes on "
        "from there.",
        ("tamp_modifier.prune", "tamp_modifier.workflows.prune.Pruned"),
    ),
    Section(
        "Data",
        "Read conversations, encode them and make the batches of a calibration; "
        "[Prepare data](../data.md) shows them at work.",
        (
            "tamp_modifier.data.read_conversations",
            "tamp_modifier.data.Collator",
            "tamp_modifier.data.make_loader",
            "tamp_modifier.data.own_answers",
            "tamp_modifier.data.Answering",
            "tamp_modifier.data.generate_texts",
            "tamp_modifier.data.Generating",
            "tamp_modifier.data.Encoded",
            "tamp_modifier.data.DataError",
        ),
    ),
    Section(
        "Report",
        "What a run decided and reached. [Report format](../report-format.md) specifies the file.",
        (
            "tamp_modifier.report.PruningReport",
            "tamp_modifier.report.LinearReport",
            "tamp_modifier.report.ReportError",
        ),
    ),
    Section(
        "Quantize",
        "GPTQ with a descent on its grid; [Masks in GPTQ](../gptq-masks.md) has what it brings.",
        ("tamp_modifier.fitted_gptq.FittedGPTQModifier",),
    ),
    Section(
        "Zeros after pruning",
        "Pruned weights stay zero while a model is quantized or trained; see [Quantize after "
        "pruning](../quantization.md).",
        (
            "tamp_modifier.zeros.keep.keep_zeros",
            "tamp_modifier.zeros.freeze.freeze",
            "tamp_modifier.zeros.freeze.FrozenZeros",
        ),
    ),
    Section(
        "Recovery",
        "Train what a pruned model has kept; see [Recover accuracy](../recovery.md).",
        (
            "tamp_modifier.recovery.run.recover_model",
            "tamp_modifier.recovery.run.Pair",
            "tamp_modifier.recovery.run.Recovered",
            "tamp_modifier.recovery.settings.RecoverySettings",
        ),
    ),
    Section(
        "Checkpoints",
        "Pack, unpack and inspect saved folders; see [Serve with vLLM](../serving.md).",
        (
            "tamp_modifier.register_with_transformers",
            "tamp_modifier.checkpoint.pack.pack_checkpoint",
            "tamp_modifier.checkpoint.pack.unpack_checkpoint",
            "tamp_modifier.checkpoint.pack.PackStats",
            "tamp_modifier.checkpoint.inspection.inspect_checkpoint",
            "tamp_modifier.checkpoint.inspection.CheckpointInfo",
            "tamp_modifier.checkpoint.inspection.LinearInfo",
        ),
    ),
    Section(
        "Several processes",
        "See [Scale to large models](../scale.md).",
        ("tamp_modifier.calibration.distributed.partition",),
    ),
    Section(
        "Sparse weights",
        "Tensors with a bitmask, and products with them; needs torch and nothing else. [Packed "
        "weights](../sparse-format.md) specifies the format.",
        (
            "tamp_modifier.sparse.PackedWeight",
            "tamp_modifier.sparse.pack",
            "tamp_modifier.sparse.unpack",
            "tamp_modifier.sparse.linear",
            "tamp_modifier.sparse.linear_int8",
            "tamp_modifier.sparse.PackedInt4",
            "tamp_modifier.sparse.pack_int4",
            "tamp_modifier.sparse.unpack_int4",
            "tamp_modifier.sparse.dequantize_int4",
            "tamp_modifier.sparse.linear_int4",
            "tamp_modifier.sparse.to_tensors",
            "tamp_modifier.sparse.from_tensors",
            "tamp_modifier.sparse.validate",
            "tamp_modifier.sparse.backend",
        ),
    ),
    Section(
        "Rules of your own",
        "Base classes of selections, allocations and scores; [Extend](../extending.md) has one "
        "example of each.",
        (
            "tamp_modifier.selection.Selection",
            "tamp_modifier.selection.base.LayerSelection",
            "tamp_modifier.allocation.Allocation",
            "tamp_modifier.scores.Score",
            "tamp_modifier.statistics.RowScalars",
            "tamp_modifier.statistics.Hessian",
            "tamp_modifier.statistics.TokenCount",
        ),
    ),
)

MODIFIER = """# TAMPModifier

Every field is an argument by name, a key of a YAML recipe and, where `tamp prune --help` lists it,
an option of the command line. [Choose a method](../choosing.md) says which to set.

::: tamp_modifier.TAMPModifier
    options:
      heading_level: 2
      filters: ["!^_", "!^on_", "!^run$", "!^abandon$", "!^requires_"]
      extensions:
        - devtools.docs_site.field_docs.FieldDocs:
            paths: [tamp_modifier.modifier.TAMPModifier]
"""


def modifier() -> str:
    """Return the page of the modifier and its fields."""
    return MODIFIER


def api() -> str:
    """Return the page of all other public names."""
    parts = [
        "# Python API",
        "Names that this page does not list are no part of the interface, and may change without "
        "a deprecation. [TAMPModifier](modifier.md) has a page of its own.",
    ]
    for section in SECTIONS:
        parts += [f"## {section.title}", section.text]
        parts += [f"::: {name}" for name in section.names]
    return "\n\n".join(parts) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "reference/modifier.md": modifier,
    "reference/api.md": api,
}
"""Pages of the site, and what writes each."""
