"""The pages of the applications: plain files that come with the package, for anyone to see. What they ask for needs the key."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

_FOLDER = Path(__file__).parent / "web"
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_HEADERS = {
    # nothing but files of this server: no script in a page, no frame around it, no form that leaves it
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
Page = tuple[str, bytes, dict[str, str]]


def _read() -> dict[str, Page]:
    """The files by their paths: `/apps/` is the index, and a page is named without its ending."""
    found: dict[str, Page] = {}
    for file in sorted(_FOLDER.iterdir()):
        if file.suffix in _KINDS:
            name = file.stem if file.suffix == ".html" else file.name
            found[f"/apps/{'' if name == 'index' else name}"] = _KINDS[file.suffix], file.read_bytes(), _HEADERS
    return found | {"/apps": found["/apps/"]}


@dataclass(frozen=True)
class Pages:
    """The files, read once."""

    files: dict[str, Page] = field(default_factory=_read)

    def find(self, path: str) -> Page | None:
        """Content type, bytes and headers of what a path names."""
        return self.files.get(path)
