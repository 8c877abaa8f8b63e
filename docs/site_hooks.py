"""Hooks of mkdocs: the README is the first page, and files outside docs/ that pages link to come along.

Pages are written to be read in the repository, where `../benchmarks/README.md` is a link that works. In the site such a file
lies under `repository/`, and links are rewritten to where files are.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"(\]\()([^)#\s]+)(#[^)\s]*)?(?=[)\s])")
FENCE = re.compile(r"^ *```.*?^ *```", flags=re.DOTALL | re.MULTILINE)


def targets(page: PurePosixPath, text: str) -> list[PurePosixPath]:
    """Files of the repository that a page links to."""
    links = [match[2] for match in LINK.finditer(FENCE.sub("", text)) if "://" not in match[2]]
    found = [PurePosixPath(os.path.normpath(page.parent / link)) for link in links]
    return [path for path in found if (ROOT / path).is_file()]


def place(path: PurePosixPath) -> str:
    """Where a file of the repository lies in the site."""
    if str(path) == "README.md":
        return "index.md"
    return str(path.relative_to("docs")) if path.is_relative_to("docs") else f"repository/{path}"


def on_files(files: Files, config: Any) -> Files:
    """Add the README, and what is reached from the pages by links."""
    todo = [PurePosixPath("README.md"), PurePosixPath("CHANGELOG.md"), PurePosixPath("CONTRIBUTING.md")]
    todo += [PurePosixPath("docs") / file.src_uri for file in files.documentation_pages()]
    seen = set()
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        if path.suffix == ".md":
            todo += targets(path, (ROOT / path).read_text(encoding="utf-8"))
        if files.get_file_from_path(place(path)) is None:
            files.append(File.generated(config, place(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links lead to where files are in the site."""
    uri = page.file.src_uri
    path = PurePosixPath(
        "README.md" if uri == "index.md" else uri.removeprefix("repository/") if "repository/" in uri else f"docs/{uri}"
    )

    def rewritten(match: re.Match[str]) -> str:
        target = PurePosixPath(os.path.normpath(path.parent / match[2]))
        if "://" in match[2] or not (ROOT / target).is_file():
            return match[0]
        return f"{match[1]}{os.path.relpath(place(target), PurePosixPath(uri).parent)}{match[3] or ''}"

    return LINK.sub(rewritten, markdown)
