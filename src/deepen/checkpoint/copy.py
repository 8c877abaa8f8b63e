"""Move byte ranges between files, hashed on the way, in bounded memory.

Each range is read once into a small buffer, hashed there, and written to all of its targets. Where a target's offset allows it,
the write goes around the page cache (`O_DIRECT`), and what was read is dropped from it: copying a model through the cache costs
more than the disk does. A kernel-side copy does not help: its bytes would have to be read again for the hash, and files share
blocks (reflinks) only where both offsets lie on block boundaries, which the headers of safetensors files do not give.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from deepen.errors import CheckpointError

BLOCK = 4096
"""Direct writes begin and end at multiples of this; larger than the blocks of the disks in use."""

_BUFFER = 8 << 20
_HASH_BUFFER = 1 << 20
_WORKERS = max(2, min(4, os.cpu_count() or 2))  # one reads and hashes while another waits for the disk


@dataclass(frozen=True)
class Span:
    """A byte range of a file."""

    file: Path
    offset: int
    nbytes: int


def copy_spans(copies: Sequence[tuple[Span, Sequence[Span]]], advance: Callable[..., None]) -> list[str]:
    """Copy each source span to all of its targets; each source byte is read and hashed once.

    Args:
        copies: pairs of a source and its targets of the same length; the target files must exist.
        advance: called with the number of bytes written since its last call; read, for a source without targets.

    Returns:
        The SHA-256 of each source span, in order.

    Raises:
        CheckpointError: a source is shorter than it was, or changed while it was read.
    """
    stop, buffers = threading.Event(), threading.local()
    digests = []
    with Files() as files:
        for source, targets in copies:
            files.reading(source.file)
            for target in targets:
                files.writing(target.file)

        def copy(job: tuple[Span, Sequence[Span]]) -> str:
            if not hasattr(buffers, "block"):
                buffers.block = memoryview(mmap.mmap(-1, _BUFFER))  # aligned to a page, as direct writes need
            source, targets = job
            digest, done = hashlib.sha256(), 0
            for part in _parts(files.reading(source.file), source, buffers.block):
                digest.update(part)
                for target in targets:
                    _write(files, target.file, part, target.offset + done)
                done += len(part)
                if stop.is_set():
                    break
            files.forget(source)
            return digest.hexdigest()

        pool = ThreadPoolExecutor(_WORKERS)
        try:
            for (source, targets), digest in zip(copies, pool.map(copy, copies), strict=True):
                digests.append(digest)
                advance(source.nbytes * max(len(targets), 1))
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
        files.check_unchanged()
    return digests


def hash_spans(spans: Sequence[Span], advance: Callable[..., None]) -> list[str]:
    """The SHA-256 of each span, read as `copy_spans` reads."""
    return copy_spans([(span, ()) for span in spans], advance)


def hash_span(span: Span) -> str:
    """The SHA-256 of a byte range, read through a small buffer."""
    digest = hashlib.sha256()
    descriptor = os.open(span.file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for part in _parts(descriptor, span, memoryview(bytearray(_HASH_BUFFER))):
            digest.update(part)
    finally:
        os.close(descriptor)
    return digest.hexdigest()


def hash_file(file: Path) -> str:
    """The SHA-256 of a whole file."""
    return hash_span(Span(file, 0, file.stat().st_size))


class Files:
    """Open descriptors by path, closed together; notices a source that changes under the copy."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._reading: dict[Path, int] = {}
        self._writing: dict[Path, tuple[int, int | None]] = {}
        self._seen: dict[Path, tuple[int, int]] = {}

    def __enter__(self) -> Files:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def reading(self, file: Path) -> int:
        """A descriptor to read `file`, whose size and time are remembered."""
        if file not in self._reading:
            self._reading[file] = self._open(file, os.O_RDONLY)
            self._seen[file] = _state(self._reading[file])
            _advise(self._reading[file], Span(file, 0, 0), "POSIX_FADV_SEQUENTIAL")
        return self._reading[file]

    def writing(self, file: Path) -> tuple[int, int | None]:
        """Two descriptors to write into the existing `file`: through the page cache, and around it where that is possible."""
        if file not in self._writing:
            plain, direct = self._open(file, os.O_RDWR), None
            if hasattr(os, "O_DIRECT"):
                try:
                    direct = self._open(file, os.O_RDWR | os.O_DIRECT)
                except OSError as error:
                    if error.errno != errno.EINVAL:  # the file system has no direct writes
                        raise
            self._writing[file] = plain, direct
        return self._writing[file]

    def forget(self, span: Span) -> None:
        """Let the page cache drop what was read."""
        _advise(self._reading[span.file], span, "POSIX_FADV_DONTNEED")

    def check_unchanged(self) -> None:
        """Raise CheckpointError if a file changed since it was opened for reading."""
        for file, state in self._seen.items():
            if _state(self._reading[file]) != state:
                raise CheckpointError("the file changed while it was read", where=file, next="run again when nothing writes it")

    def _open(self, file: Path, flags: int) -> int:
        descriptor = os.open(file, flags | os.O_CLOEXEC)
        self._stack.callback(os.close, descriptor)
        return descriptor


def write_at(files: Files, file: Path, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at an offset of an existing file."""
    _write(files, file, memoryview(data), offset)


def _state(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


def _advise(descriptor: int, span: Span, advice: str) -> None:
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, span.offset, span.nbytes, getattr(os, advice))


def _parts(descriptor: int, span: Span, buffer: memoryview) -> Iterator[memoryview]:
    """The bytes of a span, piece by piece in one buffer."""
    done = 0
    while done < span.nbytes:
        count = os.preadv(descriptor, [buffer[: min(len(buffer), span.nbytes - done)]], span.offset + done)
        if count == 0:
            raise CheckpointError(
                "the file became shorter while it was read", where=span.file, next="run again when nothing writes it"
            )
        done += count
        yield buffer[:count]


def _write(files: Files, file: Path, data: memoryview, offset: int) -> None:
    plain, direct = files.writing(file)
    while data:
        whole = len(data) - len(data) % BLOCK
        try:
            if direct is not None and offset % BLOCK == 0 and whole:
                count = os.pwrite(direct, data[:whole], offset)
            else:
                count = os.pwrite(plain, data, offset)
        except OSError as error:
            if direct is None or error.errno != errno.EINVAL:
                raise
            direct = None  # larger blocks than ours, or memory that does not suit
            continue
        data, offset = data[count:], offset + count
