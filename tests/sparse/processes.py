"""Code in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run_python(
    code: str, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter that imports from `cwd` first and shows all warnings."""
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", code],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
