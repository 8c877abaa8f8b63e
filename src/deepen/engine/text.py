"""Token ids to text as they come: whole characters only, and never a part of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_INCOMPLETE = "\ufffd"  # what decoding gives for bytes that are no whole character (yet)


class Detokenizer:
    """Text of a growing sequence of token ids. Text is held back until its last character is complete.

    Args:
        tokenizer: a transformers tokenizer.
        before: the ids before the first one; they are decoded along but not returned, since a tokenizer may treat the
            start of a text in its own way.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, before: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._ids = list(before)
        self._start = 0  # decoding starts here: a few tokens before what is new, so that spaces come out right
        self._given = len(self._ids)  # the ids before this one have been returned as text

    def add(self, token: int) -> str:
        """The text that this token completes; empty if there is none yet."""
        self._ids.append(token)
        known = self._decode(self._ids[self._start : self._given])
        text = self._decode(self._ids[self._start :])
        if text.endswith(_INCOMPLETE) or len(text) <= len(known):
            return ""
        self._start, self._given = self._given, len(self._ids)
        return text[len(known) :]

    def rest(self) -> str:
        """What was still held back when the sequence ended, without an incomplete last character."""
        known = self._decode(self._ids[self._start : self._given])
        return self._decode(self._ids[self._start :]).rstrip(_INCOMPLETE)[len(known) :]

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


class StopStrings:
    """Finds the first stop string in a text that comes in pieces. What may be the beginning of one is held back.

    Args:
        stop: the stop strings, none of them empty.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""

    def add(self, text: str) -> tuple[str, bool]:
        """The text that is safe to show now, and whether a stop string was found right after it."""
        text = self._held + text
        found = [position for stop in self._stop if (position := text.find(stop)) >= 0]
        if found:
            return text[: min(found)], True
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def rest(self) -> str:
        """What was still held back when the text ended without a stop string."""
        return self._held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest proper beginning of `stop` that `text` ends with."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
