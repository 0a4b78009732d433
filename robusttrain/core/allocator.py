"""Keeps freed memory in the process instead of giving it back to the system after every step."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # <malloc.h>


def keep_freed_memory() -> None:
    """Let glibc serve large tensors from its heap and keep freed memory; elsewhere, do nothing.

    By default glibc maps every buffer above 32 MB afresh, so on CPUs page faults take a large share
    of each step of an attack. The price is that memory once used stays with the process.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return
    mallopt(_MMAP_THRESHOLD, 1 << 30)
    mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
