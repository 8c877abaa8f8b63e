"""Several of a kind opened at once, since each takes its time, and closed whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol, TypeVar


class _Closable(Protocol):
    def close(self) -> None: ...


_Opened = TypeVar("_Opened", bound=_Closable)


@contextmanager
def opened_together(open_one: Callable[[], _Opened], count: int) -> Iterator[list[_Opened]]:
    """So many as are asked for; if one cannot be opened, the others are closed."""
    with ThreadPoolExecutor(count) as pool:
        opening = [pool.submit(open_one) for _ in range(count)]
    opened = [each.result() for each in opening if each.exception() is None]
    try:
        for each in opening:
            each.result()
        yield opened
    finally:
        for one in opened:
            one.close()
