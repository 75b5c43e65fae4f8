"""The HTML report: whole, self-contained, and right about where tokens lie on a picture."""

from __future__ import annotations

import base64
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tamp_modifier import cli
from tamp_modifier.files import write_json
from tamp_modifier.report import PruningReport
from tamp_modifier.report.page import page, write_page
from tamp_modifier.report.samples import read_samples
from tests.data.files import picture
from tests.report.test_report import make_report

VOID = {"meta", "img", "source"}


class Checker(HTMLParser):
    """Checks that tags close in order, and collects them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


LOADING = ("src", "href", "srcset", "data", "action", "poster", "background", "ping", "cite")


def outside(text: str) -> list[str]:
    """What a page would load from elsewhere or run: needs no browser."""
    found = []
    for tag, attrs in Checker(text).tags:
        if tag in ("script", "link", "iframe", "object", "embed", "base", "form"):
            found.append(f"<{tag}>")
        for name, value in attrs.items():
            value = value or ""
            if name in LOADING and not re.fullmatch(r"data:image/[\w+]+;base64,[\w+/=]+", value):
                found.append(f"{name}={value[:60]}")
            if name.startswith("on") or (tag == "meta" and value.lower() == "refresh"):
                found.append(f"{name}={value[:60]}")
            found += re.findall(r"url\([^)]*\)|@import[^;]*", value if name == "style" else "")
    for style in re.findall(r"<style>(.*?)</style>", text, re.S):
        found += re.findall(r"url\([^)]*\)|@import[^;]*", style)
    for data in re.findall(r"data:image/svg\+xml;base64,([\w+/=]+)", text):
        figure = base64.b64decode(data).decode()
        links = re.findall(r'href="([^"]+)"', figure)
        found += [link for link in links if not link.startswith(("#", "data:image/png;"))]
        found += [link for link in re.findall(r"url\(([^)]+)\)", figure) if link[0] != "#"]
        found += re.findall(r"<script|@import", figure)
    return found


@pytest.mark.parametrize(
    "code",
    [
        '<img src="http://a.b/c.png">',
        '<source srcset="https://a.b/c.png">',
        "<script>1</script>",
        '<p onclick="1">a</p>',
        "<style>p { background: url(http://a.b) }</style>",
        '<meta http-equiv="refresh" content="0">',
        "<p style=\"background: url('//a.b')\">a</p>",
    ],
)
def test_what_counts_as_something_from_elsewhere(code: str) -> None:
    assert len(outside(code)) == 1


def test_the_page_names_model_data_date_and_command() -> None:
    report = make_report()
    assert "<h1>Pruned to 45" in page(report) and "command" not in page(report)
    report.run = {
        "model": "llava-7b",
        "data": "chats <1>.jsonl",
        "date": "2026-11-28",
        "command": "tamp prune llava-7b --data chats.jsonl",
    }
    text = page(report)
    assert "<h1>llava-7b, pruned to 45" in text and "<title>llava-7b, pruned to" in text
    for value in ("chats &lt;1&gt;.jsonl", "2026-11-28", "tamp prune llava-7b --data chats.jsonl"):
        assert value in text


def report_with_attention() -> PruningReport:
    report = make_report()
    layers = dict.fromkeys(linear.layer for linear in report.linears.values())
    report.attention = {layer: {"text": 0.7, "image": 0.3} for layer in layers}
    return report


def samples_of(
    path: Path | str, grid: tuple[int, int] = (4, 5), first: int = 3
) -> list[dict[str, Any]]:
    media = [{"kind": "image", "path": str(path), "first": first, "grid": list(grid)}]
    return [{"name": "data.jsonl:1 <b>", "media": media}]


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    report = report_with_attention()
    report.settings["note"] = "<script>alert(1)</script>"
    text = page(report, samples_of(picture(tmp_path / "a.png")), media=tmp_path)
    tags = Checker(text).tags
    assert "script" not in {tag for tag, _ in tags}
    assert outside(text) == []
    sources = [v for _, attrs in tags for k, v in attrs.items() if k in ("src", "href")]
    # Sparsity, importance and its three terms, attention, selected tokens twice; each also dark.
    assert sum(source.startswith("data:image/svg") for source in sources if source) == 8
    dark = [attrs for tag, attrs in tags if tag == "source"]
    assert len(dark) == 8 and all(attrs["media"] for attrs in dark)
    assert all(attrs.get("alt") for tag, attrs in tags if tag == "img")
    for name in report.linears:
        assert f"<td>{name}</td>" in text
    assert "&lt;script&gt;" in text and "data.jsonl:1 &lt;b&gt;" in text


def test_selected_tokens_are_drawn_where_they_are(tmp_path: Path) -> None:
    # Every Linear selected tokens 0, 5, 7 and the last; the picture has tokens 3 to 22 in 4 rows.
    report = make_report()
    text = page(report, samples_of(picture(tmp_path / "a.png", (100, 80))), media=tmp_path)
    found = re.findall(r'<rect class="token" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)"', text)
    side = 420 / 5
    assert [(float(x), float(y)) for x, y, _ in found] == [(2 * side, 0.0), (4 * side, 0.0)]
    assert all(float(width) == side for *_, width in found)
    assert "2 of 20 tokens" in text and "<title>12 of 12 Linears</title>" in text


def test_tokens_that_all_count_hide_no_picture(tmp_path: Path) -> None:
    report = make_report()
    for linear in report.linears.values():
        linear.selected = [list(range(len(types))) for types in report.token_types]
    text = page(report, samples_of(picture(tmp_path / "a.png", (100, 80))), media=tmp_path)
    assert "all 20 tokens" in text and "<image" in text and 'class="token"' not in text
    assert "Every token counts in every Linear." in text and "tokens by depth" not in text
    next(iter(report.linears.values())).selected[0].remove(4)
    text = page(report, samples_of(picture(tmp_path / "a.png", (100, 80))), media=tmp_path)
    assert "20 of 20 tokens" in text and "<title>11 of 12 Linears</title>" in text
    assert "tokens by depth" in text


@pytest.mark.slow
def test_pictures_that_cannot_be_shown_are_left_out(tmp_path: Path) -> None:
    report = make_report()
    absent = samples_of(tmp_path / "absent.png")
    sound = [{"name": "a", "media": [{"kind": "audio", "path": "a.wav"}]}]
    unknown = [{"name": "a", "media": [{"kind": "image", "path": str(tmp_path / "a.png")}]}]
    for samples in (absent, sound, unknown, []):
        assert "<figure>" not in page(report, samples, media=tmp_path)
    both = samples_of(picture(tmp_path / "a.png")) * 2
    assert page(report, both, media=tmp_path).count("<figure>") == 2
    assert page(report, both, pictures=1, media=tmp_path).count("<figure>") == 1


@pytest.mark.slow
@pytest.mark.parametrize("how", ["absolute", "above", "a link", "a FIFO"])
def test_pictures_outside_of_the_folder_are_not_read(tmp_path: Path, how: str) -> None:
    outside, folder = picture(tmp_path / "secret.png"), tmp_path / "out"
    folder.mkdir()
    (folder / "link.png").symlink_to(outside)
    os.mkfifo(folder / "fifo.png")
    names = {"absolute": str(outside), "above": "../secret.png"}
    names |= {"a link": "link.png", "a FIFO": "fifo.png"}
    report = make_report()
    assert "<figure>" not in page(report, samples_of(names[how]), media=folder)
    assert "<figure>" not in page(report, samples_of(names[how]))
    assert "<figure>" in page(report, samples_of(outside), media=tmp_path)  # files of 0.1
    assert "<figure>" in page(report, samples_of("secret.png"), media=tmp_path)


def test_a_page_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_page(make_report(), tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_the_command_finds_report_and_samples_in_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    report_with_attention().save(folder / "tamp_report.json")
    samples = {"seed": 0, "samples": samples_of(picture(tmp_path / "a.png"))}
    write_json(folder / "tamp_samples.json", samples)
    command = ["report", str(folder), "--html", str(tmp_path / "page.html")]
    assert cli.main(command) == 0
    told = capsys.readouterr().out
    assert "wrote" in told and "give --media DIR" in told
    assert "<figure>" not in (tmp_path / "page.html").read_text()
    assert cli.main([*command, "--media", str(tmp_path)]) == 0
    assert "--media" not in capsys.readouterr().out
    assert "<figure>" in (tmp_path / "page.html").read_text()
    (tmp_path / "empty").mkdir()
    assert cli.main(["report", str(tmp_path / "empty")]) == 1
    assert "there is no tamp_report.json in it" in capsys.readouterr().err
    for wrong in (["--media", str(tmp_path / "absent")], ["--media", __file__]):
        assert cli.main([*command, *wrong]) == 1
        assert "--media must name a folder" in capsys.readouterr().err
    assert cli.main([*command[:2], "--media", str(tmp_path)]) == 1
    assert "give --html FILE too" in capsys.readouterr().err


SAMPLE = {"name": "a:1", "media": [{"kind": "image", "path": "a.png", "first": 3, "grid": [4, 5]}]}


def _with(**fields: Any) -> dict[str, Any]:
    media = SAMPLE["media"][0] | fields  # type: ignore[operator]
    return SAMPLE | {"media": [{k: v for k, v in media.items() if v != "none"}]}


WRONG_SAMPLES: dict[str, tuple[Any, str]] = {
    "a list": ([], "the file is [], expected dict"),
    "no samples": ({"seed": 0}, "the file lacks samples"),
    "samples no list": ({"samples": {}}, "samples is {}, expected list"),
    "a number": ({"samples": [3]}, "samples[0] is 3, expected dict"),
    "no name": ({"samples": [{"media": []}]}, "samples[0] lacks name"),
    "name no text": ({"samples": [SAMPLE | {"name": 3}]}, "samples[0].name is 3, expected str"),
    "no media": ({"samples": [SAMPLE, {"name": "a"}]}, "samples[1] lacks media"),
    "kind": ({"samples": [_with(kind="x")]}, "samples[0].media[0].kind is 'x', expected one of"),
    "no path": ({"samples": [_with(path="none")]}, "samples[0].media[0] lacks path"),
    "path": ({"samples": [_with(path=3)]}, "samples[0].media[0].path is 3, expected str"),
    "null": ({"samples": [_with(path="a\0b")]}, "expected the name of a file"),
    "grid of 0": ({"samples": [_with(grid=[0, 0])]}, "grid is [0, 0], expected [rows, columns]"),
    "grid of texts": ({"samples": [_with(grid=["x", 12])]}, "media[0].grid is 'x', expected int"),
    "grid of one": ({"samples": [_with(grid=[3])]}, "grid is [3], expected [rows, columns]"),
    "grid no list": ({"samples": [_with(grid=3)]}, "media[0].grid is 3, expected list"),
    "huge grid": ({"samples": [_with(grid=[10**6, 10**6])]}, "expected [rows, columns] of 1 to"),
    "huge number": ({"samples": [_with(grid=[10**400, 1])]}, "is not a list of samples"),
    "no grid": ({"samples": [_with(grid="none")]}, "samples[0].media[0] lacks grid"),
    "no first": ({"samples": [_with(first="none")]}, "samples[0].media[0] lacks first"),
    "first": ({"samples": [_with(first=-1)]}, "samples[0].media[0].first is -1"),
    "a truth": ({"samples": [_with(first=True)]}, "first is True, expected int"),
}


@pytest.mark.parametrize("case", WRONG_SAMPLES)
def test_samples_of_another_kind_are_refused(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, message = WRONG_SAMPLES[case]
    make_report().save(tmp_path / "tamp_report.json")
    (tmp_path / "tamp_samples.json").write_text(json.dumps(content))
    out = tmp_path / "page.html"
    assert cli.main(["report", str(tmp_path), "--html", str(out)]) == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "tamp_samples.json is not a list of samples" in line
    assert message in line and not out.exists()


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "\udc80"])
def test_samples_that_are_no_json_are_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "samples.json"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"samples\.json is not a JSON file"):
        read_samples(file)


def test_samples_are_optional(tmp_path: Path) -> None:
    assert read_samples(tmp_path / "absent.json") == []
    assert read_samples(write_json(tmp_path / "a.json", {"samples": [SAMPLE]})) == [SAMPLE]
