"""Adds the native kernels and the page of a package index; all else stands in pyproject.toml."""

import re
from glob import glob
from pathlib import Path

from setuptools import Extension, setup

FOLDER = "tamp_modifier/sparse/csrc"


def index_page(readme: str) -> str:
    """Return the README without what breaks on a package index: pictures and links to files here.

    A link to a file becomes its text and, where the text does not say it, the file's path.
    """

    def plain(link: re.Match[str]) -> str:
        text, path = link[1], link[2].partition("#")[0]
        return text if text.rstrip("/") in path else f"{text} ({path})"

    pictures = re.compile(r"^!\[[^]]*\]\((?!https://)[^)]*\)\n+", re.MULTILINE)
    return re.sub(r"\[([^]]+)\]\((?!https://)([^)]+)\)", plain, pictures.sub("", readme))


if __name__ == "__main__":
    setup(
        long_description=index_page(Path("README.md").read_text(encoding="utf-8")),
        long_description_content_type="text/markdown",
        ext_modules=[
            Extension(
                "tamp_modifier.sparse._native",  # a plain C library, loaded with ctypes
                sorted(glob(f"{FOLDER}/*.c")),
                depends=sorted(glob(f"{FOLDER}/*.h")),
                extra_compile_args=["-O3", "-g0", "-fvisibility=hidden", "-Wall", "-Wextra"],
                optional=True,  # without a compiler the package works through torch
            )
        ],
    )
