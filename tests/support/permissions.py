"""Permissions as an ordinary user meets them, also where the tests run as root."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

_OVERRIDING = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
_VERSION = 0x20080522  # of the 64-bit form of capget and capset


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Sets(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


@contextmanager
def obeyed_permissions() -> Iterator[None]:
    """Inside, this thread may read and enter what a file's mode allows its user, root included."""
    if os.geteuid() != 0:
        yield
        return
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        header, sets = _Header(_VERSION, 0), (_Sets * 2)()
        if libc.capget(ctypes.byref(header), sets):
            raise OSError(ctypes.get_errno(), "capget")
    except (OSError, AttributeError):
        pytest.skip("root reads everything here")
    before = sets[0].effective
    sets[0].effective = before & ~_OVERRIDING
    assert libc.capset(ctypes.byref(header), sets) == 0
    try:
        yield
    finally:
        sets[0].effective = before
        assert libc.capset(ctypes.byref(header), sets) == 0
