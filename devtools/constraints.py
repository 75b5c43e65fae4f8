"""Writes the exact versions that an environment was tested with: ``make constraints``.

``python -m devtools.constraints NAME`` prints what extras of tamp-modifier have drawn in, as
constraints of pip: versions alone, without hosts, paths and local labels such as "+cpu".
"""

from __future__ import annotations

import platform
import re
import sys
from importlib import metadata

from packaging.requirements import Requirement

PACKAGE = "tamp-modifier"
COMPLETE = {"compress": ("compress", "eval"), "serve-cpu": ("serve-cpu",)}
"""Extras of each file in constraints/."""


def canonical(name: str) -> str:
    """Return the name of a distribution as an index spells it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(name: str, extras: frozenset[str]) -> dict[str, str]:
    """Return name and version of what a distribution needs here, and what that needs.

    What is asked for but not installed is left out: serving works without torchaudio, say.
    """
    found: dict[str, str] = {}
    waiting, seen = [(name, extras)], set()
    while waiting:
        asked = waiting.pop()
        if asked in seen:
            continue
        seen.add(asked)
        try:
            requirements = metadata.requires(asked[0]) or []
            found[canonical(asked[0])] = metadata.version(asked[0]).partition("+")[0]
        except metadata.PackageNotFoundError:
            continue
        for line in requirements:
            requirement = Requirement(line)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": e}) for e in asked[1] | {""}):
                waiting.append((requirement.name, frozenset(requirement.extras)))
    del found[canonical(name)]
    return found


def main() -> None:
    """Print the constraints of one environment."""
    if len(sys.argv) != 2 or sys.argv[1] not in COMPLETE:
        sys.exit(f"usage: python -m devtools.constraints {'|'.join(COMPLETE)}")
    name = sys.argv[1]
    extras = COMPLETE[name]
    found = closure(PACKAGE, frozenset(extras))
    python = ".".join(platform.python_version_tuple()[:2])
    print(f"# Tested with Python {python} on {platform.system()} {platform.machine()}.")
    print("# `make constraints` writes this file from the environment.")
    print(f'# pip install "{PACKAGE}[{",".join(extras)}]" -c constraints/{name}.txt')
    for package, version in sorted(found.items()):
        print(f"{package}=={version}")


if __name__ == "__main__":
    main()
