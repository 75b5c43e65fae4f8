"""The HTML report: whole, self-contained, and right about where tokens lie on a picture."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tamp_modifier import cli
from tamp_modifier.files import write_json
from tamp_modifier.report import PruningReport
from tamp_modifier.report.page import page, read_samples, write_page
from tests.data.files import picture
from tests.report.test_report import make_report

VOID = {"meta", "img"}


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


def report_with_attention() -> PruningReport:
    report = make_report()
    layers = dict.fromkeys(linear.layer for linear in report.linears.values())
    report.attention = {layer: {"text": 0.7, "image": 0.3} for layer in layers}
    return report


def samples_of(path: Path, grid: tuple[int, int] = (4, 5), first: int = 3) -> list[dict[str, Any]]:
    media = [{"kind": "image", "path": str(path), "first": first, "grid": list(grid)}]
    return [{"name": "data.jsonl:1 <b>", "media": media}]


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    report = report_with_attention()
    report.settings["note"] = "<script>alert(1)</script>"
    text = page(report, samples_of(picture(tmp_path / "a.png")))
    tags = Checker(text).tags
    assert "script" not in {tag for tag, _ in tags}
    sources = [v for _, attrs in tags for k, v in attrs.items() if k in ("src", "href")]
    assert sources and all(source and source.startswith("data:image/") for source in sources)
    # Sparsity, diversity, attention, selected tokens.
    assert sum(source.startswith("data:image/svg") for source in sources if source) == 4
    assert all(attrs.get("alt") for tag, attrs in tags if tag == "img")
    for name in report.linears:
        assert f"<td>{name}</td>" in text
    assert "&lt;script&gt;" in text and "data.jsonl:1 &lt;b&gt;" in text


def test_selected_tokens_are_drawn_where_they_are(tmp_path: Path) -> None:
    # Every Linear selected tokens 0, 5, 7 and the last; the picture has tokens 3 to 22 in 4 rows.
    report = make_report()
    text = page(report, samples_of(picture(tmp_path / "a.png", (100, 80))))
    found = re.findall(r'<rect class="token" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)"', text)
    side = 420 / 5
    assert [(float(x), float(y)) for x, y, _ in found] == [(2 * side, 0.0), (4 * side, 0.0)]
    assert all(float(width) == side for *_, width in found)
    assert "2 of 20 tokens" in text and "<title>12 of 12 Linears</title>" in text


def test_pictures_that_cannot_be_shown_are_left_out(tmp_path: Path) -> None:
    report = make_report()
    absent = samples_of(tmp_path / "absent.png")
    sound = [{"name": "a", "media": [{"kind": "audio", "path": "a.wav"}]}]
    unknown = [{"name": "a", "media": [{"kind": "image", "path": str(tmp_path / "a.png")}]}]
    for samples in (absent, sound, unknown, []):
        assert "<figure>" not in page(report, samples)
    both = samples_of(picture(tmp_path / "a.png")) * 2
    assert page(report, both).count("<figure>") == 2
    assert page(report, both, pictures=1).count("<figure>") == 1


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
    assert cli.main(["report", str(folder), "--html", str(tmp_path / "page.html")]) == 0
    assert "wrote" in capsys.readouterr().out
    assert "<figure>" in (tmp_path / "page.html").read_text()


def test_samples_of_another_kind_are_refused(tmp_path: Path) -> None:
    assert read_samples(tmp_path / "absent.json") == []
    (tmp_path / "samples.json").write_text('{"samples": [3]}')
    with pytest.raises(ValueError, match="samples.json is not a list of samples of tamp prune"):
        read_samples(tmp_path / "samples.json")
