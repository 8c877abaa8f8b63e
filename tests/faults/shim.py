"""Faults where Python meets the operating system: every call that changes a file is counted, and fails or kills at the n-th.

Installed in a process that is about to run one command. Files opened for writing get a raw layer of our own, so what is
counted are the writes that reach the kernel, not those that reach a buffer. Writes of native code are not seen; the limit on
the size of a file (`bytes`, `full`) hits those as well, in the middle of a write.
"""

from __future__ import annotations

import builtins
import errno
import functools
import io
import os
import resource
import signal
import sqlite3
import sys
import threading
import time
from typing import Any, NamedTuple

KILLS = ("kill", "torn", "bytes")
STOPS = ("SIGTERM", "SIGINT")
STORAGE = ("ENOSPC", "EIO", "EROFS", "short", "slow", "full")

_CREATING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_GROWING = {"open", "mkdir", "write", "pwrite", "writev", "ftruncate", "truncate", "symlink", "link", "sendfile"}
_CHANGING = (
    "mkdir", "rmdir", "unlink", "remove", "rename", "replace", "link", "symlink", "truncate", "ftruncate", "fsync", "fdatasync",
    "write", "pwrite", "writev", "sendfile", "copy_file_range",
)  # fmt: skip
_real = {name: getattr(os, name) for name in (*_CHANGING, "open", "kill")}
_real_open = io.open


class Fault(NamedTuple):
    """What happens, and at which call (from 1) or, for `bytes` and `full`, at which size of a file."""

    kind: str
    at: int


class _State:
    def __init__(self, fault: Fault, pipe: int) -> None:
        self.fault, self.pipe, self.calls, self.lock = fault, pipe, 0, threading.Lock()


def install(fault: Fault, pipe: int) -> _State:
    """Wrap the calls of this process; a signal that is sent is noted in `pipe` with its time."""
    state = _State(fault, pipe)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    if fault.kind in {"bytes", "full"}:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if fault.kind == "bytes" else signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault.at, fault.at))
        return state
    for name in _CHANGING:
        setattr(os, name, functools.partial(_call, state, name))
    os.open = functools.partial(_os_open, state)
    io.open = builtins.open = functools.partial(_open, state)
    sqlite3.connect = functools.partial(_connect, state, sqlite3.connect)
    return state


def _call(state: _State, name: str, *args: Any, **options: Any) -> Any:
    if name in {"write", "fsync"} and args[0] in {1, 2, state.pipe}:
        return _real[name](*args, **options)
    hit = _count(state, name, args[0] if args and not isinstance(args[0], int) else None)
    if name in {"write", "pwrite"} and (hit or (state.fault.kind == "short" and state.calls >= state.fault.at)):
        descriptor, data, *rest = args
        count = _real[name](descriptor, _half(data), *rest)
        return _die() if hit else count
    return _die() if hit else _real[name](*args, **options)


def _os_open(state: _State, path: Any, flags: int, *args: Any, **options: Any) -> int:
    if flags & _CREATING and _count(state, "open", path):
        _die()
    return _real["open"](path, flags, *args, **options)


def _open(
    state: _State,
    file: Any,
    mode: str = "r",
    buffering: int = -1,
    encoding: Any = None,
    errors: Any = None,
    newline: Any = None,
    closefd: bool = True,
    opener: Any = None,
) -> Any:
    if not set(mode) & set("wax+"):
        return _real_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
    if not isinstance(file, int) and opener is None and _count(state, "open", file):
        _die()
    raw = _File(file, mode.replace("b", "").replace("t", ""), closefd, opener)
    raw.state = state
    if buffering == 0:
        return raw
    buffer = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)
    if "b" in mode:
        return buffer
    text = io.TextIOWrapper(buffer, io.text_encoding(encoding), errors, newline, line_buffering=buffering == 1)
    text.mode = mode
    return text


class _File(io.FileIO):
    state: _State

    def write(self, data: Any) -> Any:
        if self.fileno() in {1, 2}:
            return super().write(data)
        hit = _count(self.state, "write", self.name)
        fault = self.state.fault
        if hit or (fault.kind == "short" and self.state.calls >= fault.at):
            count = super().write(_half(data))
            return _die() if hit else count
        return super().write(data)

    def truncate(self, size: int | None = None) -> int:
        if _count(self.state, "truncate", self.name):
            _die()
        return super().truncate(size)


class _Database(sqlite3.Connection):
    state: _State

    def execute(self, *args: Any) -> Any:
        if _count(self.state, "sqlite", None):
            _die()
        return super().execute(*args)

    def executemany(self, *args: Any) -> Any:
        if _count(self.state, "sqlite", None):
            _die()
        return super().executemany(*args)


def _connect(state: _State, real: Any, *args: Any, **options: Any) -> Any:
    made = real(*args, factory=_Database, **options)
    made.state = state
    return made


def _half(data: Any) -> memoryview:
    view = memoryview(data).cast("B")
    return view[: max(1, len(view) // 2)]


def _count(state: _State, name: str, where: Any) -> bool:
    """Count a call; raise what the fault wants; True if the process dies in this call, in the midst of a write."""
    with state.lock:
        state.calls += 1
        now = state.calls
    kind, at = state.fault
    if kind in KILLS:
        if now >= at and not (kind == "torn" and name in {"write", "pwrite"}):
            _die()
        return now >= at
    if kind in STOPS and now == at:
        _real["write"](state.pipe, f"{time.monotonic()}\n".encode())
        _real["kill"](os.getpid(), getattr(signal, kind))
    elif kind == "slow":
        time.sleep(0.002)
    elif name != "sqlite" and (
        (kind == "ENOSPC" and now >= at and name in _GROWING)
        or (kind == "EIO" and now == at)
        or (kind == "EROFS" and now >= at)
    ):
        number = getattr(errno, kind)
        raise OSError(number, os.strerror(number), None if where is None or isinstance(where, int) else os.fspath(where))
    return False


def _die() -> Any:
    sys.stderr.flush()
    _real["kill"](os.getpid(), signal.SIGKILL)
    time.sleep(60)
    return None
