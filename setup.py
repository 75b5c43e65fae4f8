"""Adds the native kernels and the page of a package index; all else stands in pyproject.toml."""

import re
import sys
from glob import glob
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

FOLDER = "tamp_modifier/sparse/csrc"
NO_KERNELS = """
WARNING: the native kernels of tamp-modifier were not built; is there a C compiler?
WARNING: Everything works without them, but sparse models are served slower than dense ones.
WARNING: `tamp env` says which kernels run. Install a compiler, then tamp-modifier again.
"""


def index_page(readme: str) -> str:
    """Return the README without what breaks on a package index.

    Pictures and diagrams are left out. A link to a file here becomes its text and, where the text
    does not say it, the file's path.
    """

    def plain(link: re.Match[str]) -> str:
        before, text, path = link[1], link[2], link[3].partition("#")[0]
        if path.startswith(text.rstrip("/")):
            return f"{before}{text}"
        return f"({text}, {path}" if before else f"{text} ({path})"

    shown = r"!\[[^]]*\]\((?!https://)[^)]*\)\n+|```mermaid\n.*?\n```\n+"
    readme = re.sub(rf"^(?:{shown})", "", readme, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"(\(?)\[([^]]+)\]\((?!https://)([^)]+)\)", plain, readme)


class Library(build_ext):
    """Builds a library that ctypes loads: its name has no Python version, and it may be missing."""

    def get_ext_filename(self, fullname: str) -> str:
        """Return the path of the library."""
        return f"{Path(*fullname.split('.'))}.so"

    def build_extension(self, ext: Extension) -> None:
        """Compile and link it; what fails is told, and the build goes on without (`optional`)."""
        try:
            super().build_extension(ext)
        except Exception:
            print(NO_KERNELS, file=sys.stderr)  # pip shows it with -v
            raise


class Wheel(bdist_wheel):
    """A wheel for every Python, since the library knows nothing of it."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return Python, ABI and platform."""
        return "py3", "none", super().get_tag()[2]


if __name__ == "__main__":
    setup(
        long_description=index_page(Path("README.md").read_text(encoding="utf-8")),
        long_description_content_type="text/markdown",
        cmdclass={"build_ext": Library, "bdist_wheel": Wheel},
        ext_modules=[
            Extension(
                "tamp_modifier.sparse._native",
                sorted(glob(f"{FOLDER}/*.c")),
                depends=sorted(glob(f"{FOLDER}/*.h")),
                extra_compile_args=["-O3", "-g0", "-fvisibility=hidden", "-Wall", "-Wextra"],
                optional=True,
            )
        ],
    )
