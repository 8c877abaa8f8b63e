"""Pages of a server on this machine, and `file:` addresses; whatever leads elsewhere is refused."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import time
from contextlib import closing
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from deepen.apps.documents.find import KINDS, LARGEST, Source
from deepen.errors import DataError

_SECONDS = 20.0
_TYPES = {
    "text/html": "html", "application/xhtml+xml": "html", "text/markdown": "markdown", "application/pdf": "pdf",
    "application/x-ipynb+json": "notebook",
}  # fmt: skip


def is_address(place: str | Path) -> bool:
    """Whether it is a URL rather than a path."""
    text = str(place)
    return text.startswith("file:") or "://" in text


def open_address(address: str) -> Path | Source:
    """The file that a `file:` address names, or the page behind an `http:` address of this machine.

    Raises:
        DataError: it leads to another machine, or there is nothing.
    """
    parts = urlsplit(address)
    if parts.scheme == "file" and parts.hostname in {None, "localhost"}:
        return Path(unquote(parts.path))
    if parts.scheme != "http" or not parts.hostname:
        raise _elsewhere(address)
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_STREAM) if _looks_local(parts) else []
        places = [str(each[4][0]) for each in found if ipaddress.ip_address(each[4][0]).is_loopback]
    except (OSError, ValueError) as error:
        raise _nothing(address, error) from error
    if not places:
        raise _elsewhere(address)
    for place in places:
        try:
            return _fetch(place, parts, address)
        except (OSError, http.client.HTTPException) as error:
            failed = error
    raise _nothing(address, failed) from failed


def _looks_local(parts: SplitResult) -> bool:
    """Whether a name may lead here; no other one is looked up."""
    name = str(parts.hostname)
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _fetch(place: str, parts: SplitResult, address: str) -> Source:
    connection = http.client.HTTPConnection(place, parts.port or 80, timeout=_SECONDS)
    until = time.monotonic() + _SECONDS
    try:
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", path, headers={"Host": parts.netloc.rpartition("@")[2], "Accept-Encoding": "identity"})
        with closing(connection.getresponse()) as reply:
            if reply.status != http.HTTPStatus.OK:  # a redirection may lead to another machine
                raise http.client.HTTPException(f"HTTP {reply.status} {reply.reason}")
            data = bytearray()
            while len(data) <= LARGEST and (piece := reply.read1(1 << 16)):
                data += piece
                if time.monotonic() > until:
                    raise TimeoutError(f"not read in {_SECONDS:.0f} s")
            kind = reply.headers.get_content_type()
    finally:
        connection.close()
    suffix = Path(parts.path).suffix.lower()
    return Source(Path(parts.path), address, _TYPES.get(kind) or KINDS.get(suffix, "text"), bytes(data))


def _elsewhere(address: str) -> DataError:
    return DataError(
        "only pages of this machine are read (http://localhost, http://127.0.0.1, http://[::1], file:)",
        where=address,
        next="save the page and name the file",
    )


def _nothing(address: str, error: Exception) -> DataError:
    return DataError(f"the page cannot be read ({error})", where=address, next="start the server, or correct the address")
