"""Every row of the table in docs/reliability.md, run."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tamp_modifier import cli
from tamp_modifier.demo.evaluation import MODEL_FOLDER
from tests.data.files import asked, jsonl, picture, video

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
TABLE = PAGE.read_text().split("Interrupted and damaged runs")[0]
ROWS = dict(re.findall(r"^\| ([^|`]+) \| `(.+)` \|$", TABLE, re.M))


def data(folder: Path, *rows: object) -> list[str]:
    return ["--data", str(jsonl(folder / "data.jsonl", [asked(), *rows]))]


def with_picture(
    folder: Path, *options: str, make: Callable[[Path], object] = picture
) -> list[str]:
    make(folder / "a.png")
    return [*data(folder, asked(("image", "a.png"))), *options]


def with_picture_row(folder: Path, row: object) -> list[str]:
    picture(folder / "a.png")
    return data(folder, row)


def with_model(folder: Path, config: str | None) -> list[str]:
    (folder / "model").mkdir()
    if config is not None:
        (folder / "model" / "config.json").write_text(config)
    return [str(folder / "model"), *data(folder)]


def with_video(folder: Path) -> list[str]:
    video(folder / "a.mp4")
    return data(folder, asked(("video", "a.mp4")))


def with_file(folder: Path, name: str, text: str, *options: str) -> list[str]:
    (folder / name).write_text(text)
    return list(options)


def with_output(folder: Path, taken: bool) -> list[str]:
    out = folder / "out"
    if taken:
        out.mkdir()
        (out / "thesis.txt").write_text("mine")
    else:
        out.write_text("mine")
    return data(folder)


def with_recipe(folder: Path, *lines: str) -> list[str]:
    recipe = folder / "recipe.yaml"
    fields = "".join(f"      {line}\n" for line in lines)
    recipe.write_text(f"a_stage:\n  pruning_modifiers:\n    TAMPModifier:\n{fields}")
    return [*data(folder), "--recipe", str(recipe)]


CASES: dict[str, Callable[[Path], list[str]]] = {
    "the model does not exist": lambda f: [str(f / "absent"), *data(f)],
    "the model's folder holds no model": lambda f: with_model(f, None),
    "the config is not JSON": lambda f: with_model(f, "{"),
    "the data do not exist": lambda f: ["--data", str(f / "absent.jsonl")],
    "the data are of another kind": lambda f: with_file(
        f, "a.docx", "a,b", "--data", str(f / "a.docx")
    ),
    "an empty folder": lambda f: ["--data", str(f)],
    "a line that is not JSON": lambda f: data(f, "{"),
    "a picture that does not exist": lambda f: data(f, asked(("image", "absent.png"))),
    "an empty picture": lambda f: with_picture(f, make=lambda path: path.write_bytes(b"")),
    "a corrupt picture": lambda f: with_picture(f, make=lambda path: path.write_text("no" * 99)),
    "a picture in a key that nothing reads": lambda f: with_picture_row(
        f, {"cover": "a.png", "text": "a cat"}
    ),
    "a caption of a picture that does not exist": lambda f: data(
        f, {"image": "absent.png", "text": "a cat"}
    ),
    "more bad rows than are tolerated": lambda f: [
        *data(f, *[{"image": "absent.png", "text": "a cat"}] * 3),
        "--skip-bad",
        "2",
    ],
    "a picture on the web": lambda f: data(f, asked(("image", "https://example.org/a.png"))),
    "a conversation without an answer": lambda f: data(
        f, {"messages": [{"role": "user", "content": "what ?"}]}
    ),
    "a video for a model that sees pictures only": with_video,
    "fewer samples than asked for": lambda f: [*data(f, asked()), "--samples", "9"],
    "a maximum length that cuts a picture": lambda f: with_picture(f, "--max-length", "100"),
    "a maximum length that the model cannot read": lambda f: [*data(f), "--max-length", "9999"],
    "sparsity out of range": lambda f: [*data(f), "--sparsity", "1.5"],
    "an allocation that does not exist": lambda f: [*data(f), "--allocation", "fair"],
    "targets that match nothing": lambda f: [*data(f), "--targets", "Conv9d", "--dry-run"],
    "a recipe that does not exist": lambda f: [*data(f), "--recipe", str(f / "absent.yaml")],
    "a recipe with a key that is given twice": lambda f: with_recipe(
        f, "sparsity: 0.3", "sparsity: 0.5"
    ),
    "a text with the model's placeholder for a picture, without one": lambda f: data(
        f, {"text": "what does <image> mean ?"}
    ),
    "a recipe that is none": lambda f: with_file(
        f, "recipe.yaml", "a_stage:\n  b: {}\n", *data(f), "--recipe", str(f / "recipe.yaml")
    ),
    "no output": lambda f: data(f),
    "an output that is not empty": lambda f: with_output(f, taken=True),
    "an output that is a file": lambda f: with_output(f, taken=False),
}


def test_the_table_and_the_cases_are_the_same() -> None:
    assert list(ROWS) == list(CASES)


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_and_leaves_nothing(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = CASES[case](tmp_path)
    before = sorted(tmp_path.rglob("*"))
    model = [] if arguments and not arguments[0].startswith("--") else [str(MODEL_FOLDER)]
    output = [] if case == "no output" else ["--output", str(tmp_path / "out")]
    capsys.readouterr()
    assert cli.main(["prune", *model, *arguments, *output]) == 1
    line = capsys.readouterr().err
    assert line.startswith("tamp: error: ") and line.count("\n") == 1, line
    pieces = ROWS[case].split("...")
    assert re.search(".*".join(re.escape(piece) for piece in pieces), line), line
    assert sorted(tmp_path.rglob("*")) == before
