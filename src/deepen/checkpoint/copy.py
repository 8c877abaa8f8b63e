"""Move byte ranges between files: in the kernel where it can, hashed beside, in bounded memory.

`copy_file_range` lets the file system share blocks (a reflink) or at least keeps the bytes out of this process; where it is
refused, a plain read and write takes its place. The hash runs in a thread of its own, never far from the copy, so that the
source is read from the disk once and both find it in the page cache.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from deepen.errors import CheckpointError

_CHUNK = 32 << 20  # one system call; small enough to answer Ctrl-C at once
_BUFFER = 1 << 20
_LAG = 512 << 20  # hashing may fall this many bytes behind before the copy waits for it
_HASHERS = 1 if (os.cpu_count() or 1) <= 2 else 2  # one core of SHA-256 is slower than a good disk
_NO_KERNEL_COPY = {errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM, errno.EBADF, errno.ETXTBSY}


@dataclass(frozen=True)
class Span:
    """A byte range of a file."""

    file: Path
    offset: int
    nbytes: int


def copy_spans(copies: Sequence[tuple[Span, Sequence[Span]]], advance: Callable[..., None]) -> list[str]:
    """Copy each source span to all of its targets, and hash it once.

    Args:
        copies: pairs of a source and its targets of the same length; the target files must exist.
        advance: called with the number of bytes written since its last call.

    Returns:
        The SHA-256 of each source span, in order.

    Raises:
        CheckpointError: a source is shorter than it was, or changed while it was read.
    """
    with Files() as files, ThreadPoolExecutor(_HASHERS) as hashers:
        digests: list[Future[str]] = []
        behind: deque[tuple[Future[str], int]] = deque()
        lag = 0
        for source, targets in copies:
            digests.append(hashers.submit(hash_span, source, files.reading(source.file)))
            behind.append((digests[-1], source.nbytes))
            lag += source.nbytes
            for target in targets:
                _copy(files.reading(source.file), source, files.writing(target.file), target.offset, advance)
            while behind and (lag > _LAG or behind[0][0].done()):
                behind[0][0].result()
                lag -= behind.popleft()[1]
        result = [digest.result() for digest in digests]
        files.check_unchanged()
    return result


def hash_span(span: Span, descriptor: int | None = None) -> str:
    """The SHA-256 of a byte range, read through a small buffer."""
    if descriptor is None:
        opened = os.open(span.file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return hash_span(span, opened)
        finally:
            os.close(opened)
    digest, buffer, position, end = (
        hashlib.sha256(),
        memoryview(bytearray(_BUFFER)),
        span.offset,
        span.offset + span.nbytes,
    )
    while position < end:
        count = os.preadv(descriptor, [buffer[: min(_BUFFER, end - position)]], position)
        if count == 0:
            raise _shrunk(span)
        digest.update(buffer[:count])
        position += count
    return digest.hexdigest()


def hash_file(file: Path) -> str:
    """The SHA-256 of a whole file."""
    return hash_span(Span(file, 0, file.stat().st_size))


class Files:
    """Open descriptors by path, closed together; notices a source that changes under the copy."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._open: dict[tuple[Path, int], int] = {}
        self._seen: dict[Path, tuple[int, int]] = {}

    def __enter__(self) -> Files:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def reading(self, file: Path) -> int:
        """A descriptor to read `file`, whose size and time are remembered."""
        descriptor = self._descriptor(file, os.O_RDONLY)
        self._seen.setdefault(file, _state(descriptor))
        return descriptor

    def writing(self, file: Path) -> int:
        """A descriptor to write into the existing `file`."""
        return self._descriptor(file, os.O_RDWR)

    def check_unchanged(self) -> None:
        """Raise CheckpointError if a file changed since it was opened for reading."""
        for file, state in self._seen.items():
            if _state(self._open[file, os.O_RDONLY]) != state:
                raise CheckpointError("the file changed while it was read", where=file, next="run again when nothing writes it")

    def _descriptor(self, file: Path, flags: int) -> int:
        if (file, flags) not in self._open:
            descriptor = os.open(file, flags | os.O_CLOEXEC)
            self._stack.callback(os.close, descriptor)
            self._open[file, flags] = descriptor
        return self._open[file, flags]


def _state(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


def _copy(reading: int, source: Span, writing: int, target_offset: int, advance: Callable[..., None]) -> None:
    done = 0
    while done < source.nbytes:
        count = _copy_chunk(reading, source.offset + done, writing, target_offset + done, min(_CHUNK, source.nbytes - done))
        if count == 0:
            raise _shrunk(source)
        done += count
        advance(count)


def _copy_chunk(reading: int, read_at: int, writing: int, write_at: int, count: int) -> int:
    if hasattr(os, "copy_file_range"):
        try:
            copied = os.copy_file_range(reading, writing, count, read_at, write_at)
        except OSError as error:
            if error.errno not in _NO_KERNEL_COPY:
                raise
        else:
            if copied:  # some network file systems answer 0 instead of an error
                return copied
    data = os.pread(reading, min(count, _BUFFER), read_at)
    written = 0
    while written < len(data):
        written += os.pwrite(writing, data[written:], write_at + written)
    return len(data)


def _shrunk(span: Span) -> CheckpointError:
    return CheckpointError(
        "the file became shorter while it was read", where=span.file, next="run again when nothing writes it"
    )
