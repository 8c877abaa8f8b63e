"""SQLite with deepen's errors: one file, several programs at once, each change whole or not at all."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deepen.errors import OutputError, StorageError


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
