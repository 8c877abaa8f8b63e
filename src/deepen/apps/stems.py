"""Words of a text without their endings, as SQLite's full-text search has them."""

from __future__ import annotations

import sqlite3

TOKENIZER = "tokenize = 'porter unicode61 remove_diacritics 2'"
"""What makes words and stems of a text."""


class Stemmer:
    """Finds stems; not for several threads at once."""

    def __init__(self) -> None:
        self._scratch = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        self._scratch.execute(f"CREATE VIRTUAL TABLE words USING fts5 (body, {TOKENIZER})")
        self._scratch.execute("CREATE VIRTUAL TABLE vocabulary USING fts5vocab (words, instance)")

    def stems(self, text: str) -> list[str]:
        """The words of a text in order: small letters, without accents and endings."""
        self._scratch.execute("DELETE FROM words")
        self._scratch.execute("INSERT INTO words VALUES (?)", (text,))
        return [stem for (stem,) in self._scratch.execute("SELECT term FROM vocabulary ORDER BY offset")]

    def close(self) -> None:
        """Give back its memory."""
        self._scratch.close()
