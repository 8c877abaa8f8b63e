"""Ctrl-C while an answer comes."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator
from types import FrameType

from deepen.engine import Chunk


class Interrupt:
    """While the block runs, Ctrl-C ends the wait for the next piece and nothing else, however often it is pressed."""

    def __init__(self) -> None:
        self.asked = False
        self._waiting = False

    def __enter__(self) -> Interrupt:
        self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _handle(self, _signal: int, _frame: FrameType | None) -> None:
        self.asked = True
        if self._waiting:
            self._waiting = False
            raise KeyboardInterrupt

    def until(self, chunks: Generator[Chunk]) -> Iterator[Chunk]:
        """The chunks, up to Ctrl-C."""
        while not self.asked:
            try:
                self._waiting = True
                chunk = next(chunks)
                self._waiting = False
            except (StopIteration, KeyboardInterrupt):
                return
            finally:
                self._waiting = False
            yield chunk
