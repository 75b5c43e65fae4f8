"""``tamp env``: what this machine has and which kernels would run, to be pasted into an issue.

Nothing of it names a path, a host or a user. vLLM and llm-compressor are looked up in the metadata
of installed packages and never imported, so that it is quick and works where they are broken.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from tamp_modifier.messages import size_text

PACKAGES = ("torch", "transformers", "llmcompressor", "compressed-tensors", "vllm", "triton")
"""Distributions whose versions are told; that of vLLM for CPUs counts as vllm."""

INSTRUCTIONS = (
    "avx2",
    "avx512f",
    "avx512_vbmi2",
    "avx512_vnni",
    "avx512_bf16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
)
"""Instruction sets that decide which kernels run, as /proc/cpuinfo names them."""

VARIABLES = (
    "TAMP_SPARSE_PATH",
    "TAMP_SERVE",
    "TAMP_INT4_ACTIVATIONS",
    "VLLM_PLUGINS",
    "OMP_NUM_THREADS",
    "VLLM_CPU_OMP_THREADS_BIND",
)
"""Environment variables that change what runs."""

PLUGIN_GROUP, PLUGIN = "vllm.general_plugins", "tamp_sparse"
DISTRIBUTION = "tamp-modifier"
SERVE_PYTHON = (3, 11)
"""Oldest Python that vLLM is asked for on."""


def add_parser(subparsers: Any) -> None:
    """Add the command to the parser of ``tamp``."""
    parser = subparsers.add_parser(
        "env",
        help="print versions, processor, kernels and what is missing, for a bug report",
        description="Print what an issue should say about this machine: versions, processor, "
        "memory, the kernels that would run and why, GPU, the vLLM plugin, and what is missing to "
        "prune or to serve. No path, host or user is named.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print it."""
    found = environment()
    print(json.dumps(found, indent=2) if args.json else "\n".join(lines(found)))


def environment() -> dict[str, Any]:
    """Return what is known of this machine, as JSON values; None where it cannot be told."""
    from tamp_modifier.sparse.machine import gpus, kernels

    return {
        "versions": versions(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": processor(),
        "memory": memory(),
        "kernels": kernels(),
        "gpus": gpus(),
        "vllm_plugin": plugin(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "missing": {"compress": missing("compress"), "serve": missing_to_serve()},
    }


def installed(name: str) -> str | None:
    """Version of a distribution; None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    """Return the versions of this package, Python and `PACKAGES`."""
    from tamp_modifier import __version__

    found = {DISTRIBUTION: __version__, "python": platform.python_version()}
    others = {name: installed(name) for name in PACKAGES}
    if others["vllm"] is None and (cpu := installed("vllm-cpu")) is not None:
        others["vllm"] = f"{cpu} (vllm-cpu)"
    return found | others


def processor() -> dict[str, Any]:
    """Return the processor's name, the cores of this process and which `INSTRUCTIONS` it has."""
    fields = _fields(Path("/proc/cpuinfo"))
    flags = fields.get("flags")
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "name": fields.get("model name") or platform.processor() or None,
        "instructions": None if flags is None else [i for i in INSTRUCTIONS if i in flags.split()],
        "cores": os.cpu_count(),
        "usable_cores": len(affinity(0)) if affinity else os.cpu_count(),
    }


def memory() -> dict[str, Any]:
    """Return bytes of memory, in all and free, and how huge pages are set."""
    from tamp_modifier.checkpoint.memory import free_memory
    from tamp_modifier.sparse.memory import huge_page

    total = _fields(Path("/proc/meminfo")).get("MemTotal", "").removesuffix(" kB")
    try:
        setting = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(encoding="ascii")
        chosen = re.search(r"\[(\w+)\]", setting)
    except OSError:
        chosen = None
    return {
        "total": int(total) * 1024 if total.isdigit() else None,
        "free": free_memory(),
        "huge_pages": chosen[1] if chosen else None,
        "huge_page": huge_page(),
    }


def _fields(file: Path) -> dict[str, str]:
    """Return the first value of each name in a file of "name: value" lines; {} without one."""
    try:
        rows = [line.partition(":") for line in file.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in reversed(rows)}


def plugin() -> dict[str, Any]:
    """Return whether vLLM finds our entry point, and whether VLLM_PLUGINS lets it load."""
    found = {point.name: point.value for point in metadata.entry_points(group=PLUGIN_GROUP)}
    allowed = os.environ.get("VLLM_PLUGINS")
    return {
        "entry_point": found.get(PLUGIN),
        "allowed": allowed is None or PLUGIN in allowed.split(","),
    }


def missing(extra: str) -> list[str]:
    """Return the requirements of an extra of this package that are not met, with what is there."""
    try:
        requirements = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return [f"{DISTRIBUTION} is not installed, its files are only on the path"]
    found = []
    for line in requirements:
        requirement, _, marker = line.partition(";")
        if f'extra == "{extra}"' not in marker:
            continue
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        version = installed(name)
        if version is None:
            found.append(requirement.strip())
        elif not _fits(requirement, version):
            found.append(f"{requirement.strip()} (found {version})")
    return found


def _fits(requirement: str, version: str) -> bool:
    try:
        from packaging.requirements import Requirement
    except ImportError:  # of torch's usual company, but nothing promises it
        return True
    return Requirement(requirement).specifier.contains(version, prereleases=True)


def missing_to_serve() -> list[str]:
    """As `missing`, of the extra "serve", or of "serve-cpu" where that is nearer."""
    old = sys.version_info < SERVE_PYTHON
    python = [f"Python {'.'.join(map(str, SERVE_PYTHON))} or newer"] if old else []
    cpu = installed("vllm") is None and installed("vllm-cpu") is not None
    return python + missing("serve-cpu" if cpu else "serve")


def lines(found: dict[str, Any]) -> list[str]:
    """Return the facts of `environment` as text, a line each."""
    cpu, memory, kernels = found["processor"], found["memory"], found["kernels"]
    rows = [(name, version or "not installed") for name, version in found["versions"].items()]
    rows += [
        ("system", found["system"]),
        ("processor", cpu["name"] or "unknown"),
        ("instructions", _instructions(cpu["instructions"])),
        ("cores", f"{cpu['usable_cores']} of {cpu['cores']} usable"),
        ("memory", f"{_size(memory['total'])}, {_size(memory['free'])} free"),
        ("huge pages", f"{memory['huge_pages'] or 'none'}, {memory['huge_page'] >> 10} KiB"),
        ("CPU kernels", f"{kernels['path'] or 'none'}: {kernels['why']}"),
        ("measured", _measured(kernels)),
    ]
    for gpu in found["gpus"]:
        kind = "measured kernels" if gpu["measured"] else "kernels with guessed constants"
        size = _size(gpu["memory"])
        rows.append(("GPU", f"{gpu['name']}, {size}, sm_{gpu['capability']}, {kind}"))
    rows += [] if found["gpus"] else [("GPU", "none")]
    rows.append(("vLLM plugin", _plugin(found["vllm_plugin"])))
    rows += [(name, value or "(empty)") for name, value in found["variables"].items()]
    for task, verb in (("compress", "to prune"), ("serve", "to serve")):
        rows.append((verb, _missing(found["missing"][task])))
    width = max(len(name) for name, _ in rows) + 2
    return [f"{name:<{width}}{value}" for name, value in rows]


def _instructions(present: list[str] | None) -> str:
    if present is None:
        return "unknown"
    absent = [name for name in INSTRUCTIONS if name not in present]
    return ", ".join(present or ["none"]) + (f"; without {', '.join(absent)}" if absent else "")


def _measured(kernels: dict[str, Any]) -> str:
    if not kernels["measured"]:
        return "nothing for these kernels; Linears are served sparse wherever they are pruned"
    return "; ".join(f"{m['kind']} on {m['cpu']}, {m['date']}" for m in kernels["measured"])


def _plugin(plugin: dict[str, Any]) -> str:
    if plugin["entry_point"] is None:
        return "not found: install this package where vLLM is"
    return "found" if plugin["allowed"] else "found, but VLLM_PLUGINS leaves it out"


def _missing(requirements: list[str]) -> str:
    return f"missing: {'; '.join(requirements)}" if requirements else "nothing is missing"


def _size(size: int | None) -> str:
    return "unknown" if size is None else size_text(size)
