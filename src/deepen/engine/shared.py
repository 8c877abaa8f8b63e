"""A running llama.cpp server as an engine that others use too, whose work another thread can stop."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from deepen.engine.http import Refusal, response
from deepen.engine.llamacpp import LlamacppEngine, Server
from deepen.errors import MachineError, UnsupportedModelError


class Stopped(BaseException):
    """The work was stopped by another thread. Nothing but who stopped it should catch this, so it is no `Exception`."""


class SharedEngine(LlamacppEngine):
    """A server that somebody else started and will end; see `Engine`. Several threads may use it at once.

    Args:
        server: the running server.
        parallel: conversations that it holds at once.
    """

    def __init__(self, server: Server, *, parallel: int = 1) -> None:
        self._drafts = self._alike = self._fresh = False
        self._use(server)
        self.parallel = parallel
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._stopped = False

    def stop(self) -> None:
        """End what is being asked, and whatever is asked later, with `Stopped`; the server's slots are free at once."""
        with self._lock:
            self._stopped = True
            for each in self._sockets:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def check(self) -> None:
        """Go on.

        Raises:
            Stopped: `stop` was called.
        """
        if self._stopped:
            raise Stopped

    def without_draft(self) -> SharedEngine:
        """This engine: whether the server drafts is decided where it was started."""
        return self

    def close(self) -> None:
        """Nothing to give back: the server goes on."""

    def _broken(self) -> MachineError:
        self.check()
        return MachineError("the engine broke off", where="llama.cpp", next="ask again in a moment")

    @contextmanager
    def _reply(self, method: str, path: str, body: dict[str, Any] | None) -> Iterator[http.client.HTTPResponse]:
        opened: list[socket.socket] = []
        try:
            with response(self._address, method, path, body, key=self._key, on_connect=partial(self._watch, opened)) as reply:
                yield reply
        except Refusal as error:
            raise UnsupportedModelError(f"llama.cpp refused {path}: {error.message}") from error
        except (ConnectionError, http.client.HTTPException) as error:
            raise self._broken() from error
        except Exception:
            self.check()  # an answer that was cut off by stopping it
            raise
        finally:
            with self._lock:
                self._sockets.difference_update(opened)

    def _watch(self, opened: list[socket.socket], connected: socket.socket) -> None:
        with self._lock:
            self.check()
            opened.append(connected)
            self._sockets.add(connected)
