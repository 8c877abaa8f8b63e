"""Outputs that appear only when they are complete.

Work happens in a hidden sibling (`.NAME.partial`), which is flushed to disk and then renamed onto the target. A crash
leaves at most that sibling; the next run for the same target removes it, or continues in it where the verb can resume.
The sibling is locked while in use, so two runs for one target do not collide.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deepen.errors import OutputError, ResourceError, StorageError
from deepen.units import format_bytes


def check_target(out: str | Path, *, overwrite: bool = False) -> Path:
    """Refuse a target that exists or cannot be written, before any work is done.

    Returns:
        The target as an absolute path (its last component unresolved, so a link there is seen as existing).

    Raises:
        OutputError: `out` exists and `overwrite` is false, or its parent is missing or read-only.
    """
    out = Path(out)
    if not out.name or out.name in {".", ".."}:
        raise OutputError("the output needs a name of its own", where=out, next="name a new folder or file")
    _restore_interrupted_overwrite(out)
    if os.path.lexists(out):
        if not overwrite:
            raise OutputError("the output exists already", where=out, next="choose another name, or pass --overwrite")
        if not (out.is_symlink() or out.is_file() or out.is_dir()):
            raise OutputError("the output is a device or a pipe, which is not replaced", where=out, next="choose another name")
        if not out.is_symlink() and any(place.is_relative_to(out.resolve()) for place in (Path.cwd(), Path.home())):
            raise OutputError(
                "overwriting this would remove the folder you are in, or your home",
                where=out,
                next="choose another name",
            )
    parent = _existing_parent(out)
    if not parent.is_dir():
        raise OutputError("the parent of the output is not a folder", where=parent, next="choose another place")
    if not _writable(parent):
        raise OutputError("the place of the output cannot be written", where=parent, next="choose a writable folder")
    return out.parent.absolute() / out.name


def check_disk(out: str | Path, needed_bytes: int) -> None:
    """Refuse a job whose output would not fit on the disk.

    Raises:
        ResourceError: less than `needed_bytes` (plus 1 % for headers and file-system blocks) is free at the target.
    """
    needed = needed_bytes + needed_bytes // 100
    parent = _existing_parent(Path(out))
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise ResourceError(
            f"the output needs {format_bytes(needed)}, but {format_bytes(free)} are free",
            where=parent,
            next="free some space or choose another disk",
        )


@contextmanager
def new_folder(out: str | Path, *, overwrite: bool = False, resume: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes `out` when the block ends well.

    Args:
        out: the target; it must not exist unless `overwrite`.
        overwrite: replace an existing target, at the end and in one step.
        resume: keep what an interrupted run left in the partial folder, and keep it again if this block fails.

    Yields:
        The partial folder to write into. Everything in it is flushed to disk before the rename.

    Raises:
        OutputError: the target exists, cannot be written, or another run is at work on it.
        StorageError: the disk is full or failing.
    """
    out = check_target(out, overwrite=overwrite)
    partial = partial_path(out)
    with storage_errors(out):
        if not resume or partial.is_symlink() or not partial.is_dir():
            _remove(partial, locked=True)
        partial.mkdir(parents=True, exist_ok=True)
    lock = _lock(partial)
    try:
        with storage_errors(out):
            yield partial
            _sync_tree(partial)
            _publish(partial, out, overwrite=overwrite)
    except BaseException:
        if not resume:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        os.close(lock)


@contextmanager
def new_file(out: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary file that becomes `out` when the block ends well; see `new_folder`."""
    out = check_target(out, overwrite=overwrite)
    partial = partial_path(out)
    with storage_errors(out):
        _remove(partial, locked=True)
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
    lock = _lock(partial)
    try:
        with storage_errors(out):
            yield partial
            _sync(partial)
            _publish(partial, out, overwrite=overwrite)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    finally:
        os.close(lock)


@contextmanager
def resumable_file(out: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A folder to work in, in which a later run continues if this one is interrupted; its file `complete` becomes `out`.

    Args:
        out: the target; it must not exist unless `overwrite`.
        overwrite: replace an existing target, at the end and in one step, and start anew.

    Yields:
        The folder. When the block ends well it goes; a block that fails leaves it for the next run, unless it is empty.

    Raises:
        OutputError: the target exists, cannot be written, or another run is at work on it.
        StorageError: the disk is full or failing.
    """
    out = check_target(out, overwrite=overwrite)
    partial = partial_path(out)
    with storage_errors(out):
        if overwrite or partial.is_symlink() or not partial.is_dir():
            _remove(partial, locked=True)
        partial.mkdir(parents=True, exist_ok=True)
    lock = _lock(partial)
    try:
        with storage_errors(out):
            yield partial
            _sync(partial / "complete")
            _publish(partial / "complete", out, overwrite=overwrite)
            shutil.rmtree(partial)
    except BaseException:
        with suppress(OSError):
            partial.rmdir()
        raise
    finally:
        os.close(lock)


def write_file(path: Path, data: str | bytes) -> None:
    """Write a small file so that a reader sees the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_bytes(data.encode() if isinstance(data, str) else data)
    _sync(temporary)
    temporary.replace(path)


def partial_path(out: Path) -> Path:
    """Where the work for `out` happens until it is complete."""
    return out.parent / f".{out.name}.partial"


def cache_folder() -> Path:
    """Where what can be made again is kept: `$DEEPEN_CACHE`, or `deepen` in `$XDG_CACHE_HOME`, or `~/.cache/deepen`."""
    if named := os.environ.get("DEEPEN_CACHE"):
        return Path(named).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "deepen"


def data_folder() -> Path:
    """Where what the user said is kept: `$DEEPEN_DATA`, or `deepen` in `$XDG_DATA_HOME`, or `~/.local/share/deepen`."""
    if named := os.environ.get("DEEPEN_DATA"):
        return Path(named).absolute()
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share").absolute() / "deepen"


@contextmanager
def storage_errors(where: Path) -> Iterator[None]:
    """Turn what a full, failing or read-only disk raises into deepen's errors."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise StorageError("the disk is full", where=where, next="free some space and run again") from error
        if error.errno == errno.EIO:
            raise StorageError("the disk returned an error", where=where, next="check the disk") from error
        refused = error.errno in {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENAMETOOLONG}
        # a source that cannot be read is not the output's fault
        if refused and (error.filename is None or Path(os.fsdecode(error.filename)).absolute().is_relative_to(where.parent)):
            raise OutputError(
                f"the place of the output cannot be written ({error.strerror})",
                where=where,
                next="choose another place",
            ) from error
        raise


def _existing_parent(out: Path) -> Path:
    parent = out.absolute().parent
    while not os.path.lexists(parent):
        parent = parent.parent
    return parent


def _writable(folder: Path) -> bool:
    # access(2) says yes to root on a read-only mount in some containers, so ask the mount as well
    read_only = bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
    return os.access(folder, os.W_OK | os.X_OK) and not read_only


def _lock(partial: Path) -> int:
    descriptor = -1
    try:
        descriptor = os.open(partial, os.O_RDONLY | os.O_NOFOLLOW)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), partial.lstat()):
            raise FileNotFoundError(partial)  # removed by another run between opening and locking
    except (BlockingIOError, FileNotFoundError) as error:
        if descriptor >= 0:
            os.close(descriptor)
        raise OutputError(
            "another run is writing this output", where=partial, next="wait for it, or choose another name"
        ) from error
    return descriptor


def _remove(path: Path, *, locked: bool = False) -> None:
    if not os.path.lexists(path):
        return
    if path.is_symlink() or not path.is_dir():
        if locked and not path.is_symlink():
            os.close(_lock(path))
        path.unlink()
        return
    if locked:
        os.close(_lock(path))
    shutil.rmtree(path)


def _old_path(out: Path) -> Path:
    return out.parent / f".{out.name}.old"


def _publish(partial: Path, out: Path, *, overwrite: bool) -> None:
    old = _old_path(out)
    if os.path.lexists(out):
        if not overwrite:
            raise OutputError("the output appeared while this run was at work", where=out, next="choose another name")
        _remove(old)
        out.rename(old)
    partial.rename(out)
    _sync(out.parent)
    _remove(old)


def _restore_interrupted_overwrite(out: Path) -> None:
    # a crash between the two renames of an overwrite leaves only the old output, under its other name
    old = _old_path(out)
    if os.path.lexists(old) and not os.path.lexists(out):
        old.rename(out)


def _sync_tree(folder: Path) -> None:
    for root, _, files in os.walk(folder):
        for name in files:
            _sync(Path(root) / name)
        _sync(Path(root))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
