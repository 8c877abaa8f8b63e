"""One run at a time in one folder."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from deepen.errors import OutputError, printable
from deepen.output import storage_errors

LOCK_FILE = ".lock"


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder while the block runs; the lock goes with the process, however that ends.

    Raises:
        OutputError: another run is at work there; the message says which.
    """
    file = folder / LOCK_FILE
    with storage_errors(file):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(
                f"another run is at work in this folder{_holder(file)}",
                where=folder,
                next="wait for it, or pass --out for another folder",
            ) from error
        with storage_errors(file):
            os.ftruncate(descriptor, 0)
            holder = {"process": os.getpid(), "host": socket.gethostname(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
            os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        yield
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _holder(file: Path) -> str:
    try:
        holder = json.loads(file.read_text(encoding="utf-8"))
        return printable(f": process {holder['process']} on {holder['host']}, since {holder['since']}")
    except (OSError, ValueError, KeyError, TypeError):
        return ""
