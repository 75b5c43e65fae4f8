"""The HTML report in a browser: it is drawn, and asks nobody for anything.

Where no Chromium is installed, `test_page.outside` alone looks for what a page would load.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tamp_modifier.report.page import POLICY, write_page
from tests.data.files import picture
from tests.report.test_page import report_with_attention, samples_of

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --hide-scrollbars "
    "--enable-logging=stderr --window-size=900,2400"
).split()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason=f"none of {', '.join(NAMES)} is installed"),
]


def browse(page: Path, *options: str) -> tuple[list[str], np.ndarray]:
    """What the console says to a page, and its pixels ``[height, width, 3]``."""
    shot = page.with_suffix(".png")
    command = [CHROMIUM, *OPTIONS, f"--user-data-dir={page.parent / 'profile'}", *options]
    done = subprocess.run(
        [*command, f"--screenshot={shot}", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert shot.is_file(), done.stderr
    said = re.findall(r":CONSOLE[^\]]*\] (.*)", done.stderr)
    return said, np.asarray(Image.open(shot).convert("RGB")).astype(int)


@pytest.fixture
def page(tmp_path: Path) -> Path:
    samples = samples_of(picture(tmp_path / "a.png"))
    return write_page(report_with_attention(), tmp_path / "page.html", samples, media=tmp_path)


def test_the_page_is_drawn_and_the_console_stays_empty(page: Path) -> None:
    said, light = browse(page)
    assert said == []
    assert (light[0, 0] == 255).all() and light.std() > 10
    # The yellow end of the heat map's colours: the figures are there.
    assert (np.abs(light - (0xFD, 0xE7, 0x25)).sum(-1) < 30).any()


def test_a_dark_page_has_dark_figures(page: Path) -> None:
    said, dark = browse(page, "--blink-settings=preferredColorScheme=0")
    assert said == []
    assert dark[0, 0].max() < 60
    bright = (dark.min(-1) > 250).mean()
    assert bright < 0.02, "a figure has a white ground"


def test_the_page_lets_nothing_in(tmp_path: Path) -> None:
    """What a browser is told refuses it, and the console, by which the tests above go, says so."""
    page = tmp_path / "page.html"
    meta = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    code = '<img src="http://127.0.0.1:9/a.png"><script>document.title = 1</script>'
    page.write_text(f"<!doctype html><html><head>{meta}</head><body>{code}</body></html>")
    said, _ = browse(page)
    assert len(said) == 2 and all("Content Security Policy" in line for line in said)
