"""Permission to use AMX tiles, which Linux gives to a process that asks for it.

A process that uses tiles without it is killed (SIGILL). oneDNN asks before its first product of
dense bfloat16 matrices, and vLLM's attention for CPUs relies on that. Where all Linears are sparse
nobody else asks.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys

_ARCH_PRCTL = 158  # x86-64
_ARCH_REQ_XCOMP_PERM = 0x1023
_XFEATURE_XTILEDATA = 18

_asked: tuple[int, bool] | None = None
"""The process that has asked, and the answer: a child has to ask for itself."""


def request_amx() -> bool:
    """Ask the kernel, once a process, for permission to use AMX tiles.

    Returns:
        Whether this process may use them; False on processors, kernels and systems without AMX,
        which the call leaves as they are.
    """
    global _asked
    if _asked is None or _asked[0] != os.getpid():
        _asked = os.getpid(), _request()
    return _asked[1]


def _request() -> bool:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    call = ctypes.CDLL(None).syscall
    call.restype = ctypes.c_long
    arguments = (_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA)
    return call(*map(ctypes.c_long, arguments)) == 0
