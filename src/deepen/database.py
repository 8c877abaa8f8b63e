"""SQLite with deepen's errors: one file, several programs at once, each change whole or not at all."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from deepen.errors import OutputError, StorageError
from deepen.output import storage_errors

_SECONDS_TO_WAIT = 10.0  # for another program that writes at the same time


def open_own(file: Path, schema: str, version: int, errors: AbstractContextManager[None]) -> sqlite3.Connection:
    """A database for its owner's eyes only, made if it is new; several programs may use it at once.

    Args:
        file: where it is.
        schema: its statements.
        version: of the schema; a file of a later one is refused.
        errors: what turns SQLite's errors into deepen's.

    Raises:
        OutputError: the file cannot be written, or is something else.
        StorageError: the disk is full or failing.
    """
    with storage_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file.touch(mode=0o600)
    with errors:
        # a rollback journal that is flushed at each commit: unlike a write-ahead log it also works on network disks
        database = sqlite3.connect(file, timeout=_SECONDS_TO_WAIT, isolation_level=None, check_same_thread=False)
        database.execute("PRAGMA synchronous = FULL")
        with transaction(database):
            made: int = database.execute("PRAGMA user_version").fetchone()[0]
            if made == 0:
                for statement in schema.split(";"):
                    database.execute(statement)
                database.execute(f"PRAGMA user_version = {version}")
    if made > version:
        database.close()
        raise OutputError("made by a newer deepen", where=file, next="update deepen, or set DEEPEN_DATA elsewhere")
    return database


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """What happens inside is kept if it ends well, or else undone. The connection has the isolation level None."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


@contextmanager
def database_errors(file: Path, what: str, *, full: str, otherwise: str) -> Iterator[None]:
    """Turn SQLite's errors into deepen's.

    Args:
        file: the database.
        what: failed, such as "the index cannot be kept".
        full: what to do next if the disk is full or failing, or another program holds the file.
        otherwise: what to do next in any other case.

    Raises:
        StorageError, OutputError: for the one case and the other.
    """
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_BUSY}:
            raise StorageError(f"{what} ({error})", where=file, next=full) from error
        raise OutputError(f"{what} ({error})", where=file, next=otherwise) from error
