"""Conversations kept in SQLite: every turn is on disk as soon as it exists, whatever happens to the process."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from deepen.chat.conversation import Turn, Turns, whole
from deepen.database import database_errors, open_own, transaction

_VERSION = 1
_SCHEMA = """
CREATE TABLE conversation (id INTEGER PRIMARY KEY AUTOINCREMENT, model TEXT NOT NULL, changed TEXT NOT NULL);
CREATE TABLE turn (
    conversation INTEGER NOT NULL REFERENCES conversation (id),
    number INTEGER NOT NULL,
    role TEXT NOT NULL,
    content TEXT NOT NULL,
    stopped INTEGER NOT NULL,
    completion_tokens INTEGER,
    seconds REAL NOT NULL,
    energy_joules REAL,
    PRIMARY KEY (conversation, number)
);
"""


@dataclass(frozen=True)
class Kept:
    """A line about a kept conversation."""

    id: int
    model: str
    changed: str
    """When a turn came last, UTC."""
    turns: int
    begins: str
    """The user's first turn."""


class Store:
    """The file `chats.sqlite` in a folder, for its owner's eyes only; several chats may use it at once.

    Raises:
        OutputError: the file cannot be written, or is something else.
        StorageError: the disk is full or failing.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / "chats.sqlite"
        self._database = open_own(self.file, _SCHEMA, _VERSION, self._errors())

    def new(self, model: str) -> int:
        """Begin a conversation; its id."""
        with self._errors(), transaction(self._database):
            return (
                self._database.execute(
                    "INSERT INTO conversation (model, changed) VALUES (?, ?)", (whole(model), _now())
                ).lastrowid
                or 0
            )

    def save(self, conversation: int, turns: Turns, start: int = 0) -> None:
        """Make the conversation these turns, in one step.

        Args:
            conversation: its id.
            turns: all of them.
            start: the turns before this one stand in the file already.
        """
        rows = [
            (conversation, number, turn.role, turn.content, turn.stopped, turn.completion_tokens, turn.seconds,
             turn.energy_joules)
            for number, turn in enumerate(turns[start:], start=start)
        ]  # fmt: skip
        with self._errors(), transaction(self._database):
            self._database.execute("DELETE FROM turn WHERE conversation = ? AND number >= ?", (conversation, start))
            self._database.executemany("INSERT INTO turn VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
            self._database.execute("UPDATE conversation SET changed = ? WHERE id = ?", (_now(), conversation))

    def load(self, conversation: int) -> Turns:
        """The turns of a conversation; none if there is no such."""
        with self._errors():
            rows = self._database.execute(
                "SELECT role, content, stopped, completion_tokens, seconds, energy_joules FROM turn"
                " WHERE conversation = ? ORDER BY number",
                (conversation,),
            ).fetchall()
        return tuple(Turn(role, content, bool(stopped), *took) for role, content, stopped, *took in rows)

    def kept(self, most: int = 20) -> list[Kept]:
        """The conversations that changed last, the latest first."""
        with self._errors():
            rows = self._database.execute(
                "SELECT id, model, changed, (SELECT COUNT(*) FROM turn WHERE conversation = id),"
                " (SELECT content FROM turn WHERE conversation = id AND role = 'user' ORDER BY number LIMIT 1)"
                " FROM conversation WHERE EXISTS (SELECT 1 FROM turn WHERE conversation = id)"
                " ORDER BY changed DESC, id DESC LIMIT ?",
                (most,),
            ).fetchall()
        return [Kept(number, model, changed, turns, begins or "") for number, model, changed, turns, begins in rows]

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _errors(self) -> AbstractContextManager[None]:
        elsewhere = "set DEEPEN_DATA to a folder on another disk"
        return database_errors(
            self.file, "the chat cannot be kept", full=f"free some space, or {elsewhere}", otherwise=elsewhere
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
