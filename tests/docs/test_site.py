"""The site of the documentation: complete, without a warning, and without a request to anywhere; its picture is the code's."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
CONFIG = yaml.load((ROOT / "mkdocs.yml").read_text(), yaml.BaseLoader)


def rooms_script():
    spec = importlib.util.spec_from_file_location("generate_rooms", DOCS / "generate_rooms.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def entries(nav) -> list[str]:
    values = [value for item in nav for value in item.values()]
    return [page for value in values for page in (entries(value) if isinstance(value, list) else [value])]


def test_every_page_is_in_the_navigation() -> None:
    listed = entries(CONFIG["nav"])
    assert len(listed) == len(set(listed))
    pages = {page for page in listed if not page.startswith("repository/")} - {"index.md"}
    assert pages == {file.name for file in DOCS.glob("*.md")}
    assert all((ROOT / page.removeprefix("repository/")).is_file() for page in listed if page.startswith("repository/"))


def test_the_picture_of_the_rooms_is_that_of_the_table() -> None:
    page = (DOCS / "design.md").read_text(encoding="utf-8")
    assert (DOCS / "rooms.svg").read_text(encoding="utf-8") == rooms_script().draw(page), "run python docs/generate_rooms.py"


def test_the_floors_of_the_picture_are_those_that_are_enforced() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    enforced = [set(re.findall(r"\w+", floor)) for floor in reversed(layers)]
    script = rooms_script()
    drawn = script.floors((DOCS / "design.md").read_text(encoding="utf-8"))
    assert [{room for room, _ in drawn[number]} for number in sorted(drawn)][1:] == enforced[2:]
    assert {room for room, _ in drawn[0]} == enforced[0] | enforced[1]  # two floors without torch that the table tells as one


def test_what_solars_page_names_exists() -> None:
    text = (DOCS / "solar.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w/]+\.py)`", text))
    assert len(named) > 30
    tests = {name for name in named if name.partition("/")[0] in {"unit", "parity", "faults", "docs", "pipeline"}}
    assert [name for name in tests if not (ROOT / "tests" / name).is_file()] == []
    assert [name for name in named - tests if not (ROOT / "src" / "deepen" / name).is_file()] == []
    for table in ("1", "2", "3", "4, 5", "6", "7", "8", "9"):
        assert re.search(rf"^\| {table} \|", text, flags=re.MULTILINE), f"table {table} of the paper"


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_paths_of_the_repository_in_a_page_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:src|tests|benchmarks|docs|recipes|deploy|examples)/[\w./-]+)`", text):
        found = (ROOT / path).exists() or any(ROOT.glob(f"{path.rstrip('/')}*"))
        assert found or path.startswith("benchmarks/work/"), path


class Requests(HTMLParser):
    """What a browser loads by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        loads = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}.get(tag)
        if loads and values.get(loads) and values.get("rel") not in {"canonical", "prev", "next"}:
            self.found.append(values[loads])


@pytest.mark.skipif(importlib.util.find_spec("material") is None, reason="needs mkdocs-material (the dependency group docs)")
def test_the_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    assert "WARNING " not in built.stderr
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert len(pages) > len(list(DOCS.glob("*.md")))
    for page in pages:
        requests = Requests()
        requests.feed(page.read_text(encoding="utf-8"))
        assert [each for each in requests.found if re.match(r"(https?:)?//", each)] == [], page
        missing = [each for each in requests.found if not each.startswith("data:") and page.name != "404.html"]
        assert [each for each in missing if not (page.parent / each.partition("?")[0]).exists()] == [], page
    styles = "".join(file.read_text(encoding="utf-8") for file in (tmp_path / "site").rglob("*.css"))
    assert not re.search(r"url\(['\"]?(https?:)?//", styles)
