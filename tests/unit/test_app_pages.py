"""The pages of the applications in a real browser, used with the mouse and with the keyboard alone, and checked with axe-core.

Screenshots go to the folder that `DEEPEN_TEST_ARTIFACTS` names. With `DEEPEN_TEST_BROWSER=required` (in CI) a missing browser
is a failure; without, the tests are skipped.
"""

import contextlib
import importlib.util
import json
import os
from pathlib import Path

import pytest

from browser import PROGRAM, open_page
from serving import serving
from tinygguf import write_tiny_gguf

LEAVE = """# Leave

A new father gets 23 days of paid leave. He tells the office four weeks before, in writing, and says on which day it begins.

# Travel

Trains are booked with the red form. Flights are booked with the blue form, two weeks before they leave.
"""
HOSTILE = """# <img src=x onerror=alert(1)>

A new <script>document.title = 'taken'</script> mother gets 40 days of leave & <b>rest</b> in the month of May.
"""
KEY = "a-key"
pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("axe_playwright_python") is None, reason="needs the wheel axe-playwright-python"
    ),
    pytest.mark.skipif(
        PROGRAM is None and os.environ.get("DEEPEN_TEST_BROWSER") != "required", reason="no Chromium is installed"
    ),
]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A server of a tiny random model, which is soon done, with two documents."""
    gguf = write_tiny_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf", context=16384)
    docs = tmp_path_factory.mktemp("handbook")
    (docs / "leave.md").write_text(LEAVE)
    (docs / "hostile.md").write_text(HOSTILE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPEN_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("DEEPEN_DATA", str(tmp_path_factory.mktemp("data")))
        words = ("--docs", docs, "--api-key", KEY, "--parallel", 2, "--context", 16384, "--max-new-tokens", 60)
        with serving(gguf, *words) as (_, address):
            yield address["url"]


@pytest.fixture
def artifacts(tmp_path):
    """Where screenshots go."""
    folder = Path(os.environ.get("DEEPEN_TEST_ARTIFACTS", tmp_path / "artifacts"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def visit(url, path, profile, *, key=True):
    """A page, with the key or without; at the end nothing went wrong in it and no other machine was asked."""
    with open_page(f"{url}/apps/", profile) as page:
        page.watch()
        if key:
            page.evaluate(f"sessionStorage.setItem('deepen-key', {json.dumps(KEY)})")
        page.look()
        page.open(url + path)
        yield page
        complaints = [each for each in page.complaints() if "401 (Unauthorized)" not in str(each)]
        assert complaints == []
        assert page.requests()
        assert all(each.startswith((f"{url}/", "data:")) for each in page.requests()), page.requests()


def look_at(page, name, artifacts):
    """What axe-core finds at two widths, light and dark, and that nothing is cut off; with screenshots."""
    (place,) = importlib.util.find_spec("axe_playwright_python").submodule_search_locations
    page.call("Runtime.evaluate", {"expression": Path(place, "axe.min.js").read_text()})
    for width in (1280, 768, 375):
        for dark in (False, True):
            page.look(width=width, dark=dark)
            page.screenshot(artifacts / f"{name}-{width}-{'dark' if dark else 'light'}.png", whole=True)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{width} pixels are too few"
            found = page.evaluate(
                "axe.run().then(({violations}) => violations.map(({id, nodes}) => [id, ...nodes.map(({html}) => html)]))"
            )
            assert found == []
    page.look()


def finished(page, button, name):
    """Wait until the work is done."""
    page.wait(f"document.querySelector({json.dumps(button)}).textContent === {json.dumps(name)}", seconds=60)
    assert page.evaluate("document.querySelector('#trouble').textContent") == ""


def test_the_index_leads_to_each_page_and_to_the_chat(url, tmp_path, artifacts):
    with visit(url, "/apps/", tmp_path) as page:
        look_at(page, "apps", artifacts)
        page.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
        page.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
        assert page.evaluate("document.querySelector('main a[href=\"/\"]').textContent")
        page.tab_to(".apps a[href='/apps/support']")
        page.press("Enter")
        page.wait("location.pathname === '/apps/support'")
        assert page.evaluate("document.querySelector('nav [aria-current]').textContent") == "Support"


def test_support_with_the_keyboard(url, tmp_path, artifacts):
    with visit(url, "/apps/support", tmp_path) as page:
        page.wait("!!document.querySelector('#about').textContent.includes('2 documents')")
        page.tab_to("#question")
        page.press("Enter")
        assert "There is no question yet" in page.wait("document.querySelector('#trouble').textContent")
        page.type("How many days of paid leave does a new father get?")
        page.press("Enter")
        page.wait("!!document.querySelector('.exchange.answered')", seconds=60)
        finished(page, "#go", "Ask")
        assert page.evaluate("document.activeElement.id") == "question"
        page.evaluate("document.querySelector('.name').focus()")
        page.tab_to(".cite")
        page.press("Enter")
        page.wait("!!document.querySelector('.sources .shown details[open]')")
        assert "23 days" in page.evaluate("document.querySelector('.shown blockquote').textContent")
        assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
        assert page.evaluate("document.querySelector('.sources .cited .badge').textContent").endswith("cited")
        page.tab_to("#question")
        page.type("Who won the cup in Madrid?")
        page.press("Enter")
        page.wait("!!document.querySelector('.exchange.unknown')", seconds=60)
        finished(page, "#go", "Ask")
        look_at(page, "support", artifacts)
        page.tab_to("#clear")
        page.press("Enter")
        assert page.evaluate("document.querySelector('#log').children.length") == 0


def test_support_with_the_mouse_shows_documents_as_text(url, tmp_path):
    with visit(url, "/apps/support", tmp_path) as page:
        page.click("#question")
        page.type("How many days of leave does a new mother get?")
        page.click("#go")
        page.wait("!!document.querySelector('.exchange.answered')", seconds=60)
        finished(page, "#go", "Ask")
        page.click(".cite")
        shown = page.wait("document.querySelector('.shown blockquote')?.textContent")
        assert "<script>" in shown
        assert page.evaluate("document.querySelectorAll('main img, main script, main b').length") == 0
        assert page.evaluate("document.title").startswith("Support")


def test_the_key_is_asked_for_and_kept(url, tmp_path, artifacts):
    with visit(url, "/apps/support", tmp_path, key=False) as page:
        page.wait("document.activeElement.id === 'key-input'")
        page.type("wrong")
        page.press("Enter")
        page.wait("!!document.querySelector('#key-label')?.textContent.startsWith('That key')")
        page.wait("document.activeElement.id === 'key-input'")
        look_at(page, "key", artifacts)
        page.type(KEY)
        page.press("Enter")
        page.wait("!!document.querySelector('#about').textContent.includes('2 documents')")
        page.open(url + "/apps/summarize")
        page.open(url + "/apps/support")
        page.wait("!!document.querySelector('#about').textContent.includes('2 documents')")
        assert page.evaluate("document.querySelector('#key')") is None


def test_summarize_a_dropped_document_with_the_mouse(url, tmp_path, artifacts):
    file = tmp_path / "leave.md"
    file.write_text(LEAVE)
    with visit(url, "/apps/summarize", tmp_path) as page:
        page.click("#go")
        assert "There is nothing to summarize yet" in page.wait("document.querySelector('#trouble').textContent")
        page.drop("#drop .hint", file)
        page.wait("!!document.querySelector('.files li')?.textContent.includes('leave.md')")
        page.click(".files button")
        assert page.evaluate("document.querySelectorAll('.files li').length") == 0
        page.drop("#drop .hint", file)
        page.evaluate("document.querySelector('#length').value = 'short'")
        page.evaluate(
            "seen = []; new MutationObserver(() => seen.push(document.querySelector('#summary').textContent))"
            ".observe(document.querySelector('#summary'), {childList: true})"
        )
        page.click("#go")
        page.wait("document.querySelector('#facts').textContent", seconds=60)
        finished(page, "#go", "Summarize")
        page.wait("document.querySelector('#state').textContent === 'The summary is ready.'")
        assert len(page.evaluate("seen.filter((text, index) => text && text !== seen[index - 1])")) >= 1
        assert page.evaluate("document.activeElement.id") == "result-title"
        page.click("#summary .cite")
        assert page.wait("document.querySelector('.shown blockquote').textContent") in LEAVE
        look_at(page, "summarize", artifacts)


def test_summarize_a_pasted_text_with_the_keyboard_and_stop(url, tmp_path):
    with visit(url, "/apps/summarize", tmp_path) as page:
        page.tab_to("#text")
        page.type(LEAVE)
        page.tab_to("#cite")
        page.press(" ")
        assert page.evaluate("document.querySelector('#cite').checked") is False
        page.tab_to("#go")
        page.press("Enter")
        page.wait("document.querySelector('#go').textContent === 'Stop'")
        page.press("Escape")
        page.wait("document.querySelector('#state').textContent === 'Stopped.'")
        finished(page, "#go", "Summarize")
        assert page.evaluate("document.activeElement.id") == "go"
        page.press("Enter")
        page.wait("!!document.querySelector('#facts').textContent.includes('pasted text')", seconds=60)
        assert page.evaluate("document.querySelectorAll('#summary .cite').length") == 0


def test_a_document_that_cannot_be_read_is_told_in_place(url, tmp_path):
    (tmp_path / "picture.md").write_bytes(b"\x00\x01\x02")
    (tmp_path / "large.txt").write_bytes(b"x" * 7_000_000)
    with visit(url, "/apps/summarize", tmp_path) as page:
        page.choose("#files", tmp_path / "picture.md")
        page.click("#go")
        assert "picture.md: binary, not a text" in page.wait("document.querySelector('#trouble').textContent")
        # what the browser itself says of a request that was refused
        page.events[:] = [each for each in page.events if "status of 400" not in json.dumps(each)]
        page.choose("#files", tmp_path / "large.txt")
        assert "too large for this server" in page.wait("document.querySelector('#trouble').textContent")


def test_write_from_facts(url, tmp_path, artifacts):
    file = tmp_path / "facts.md"
    file.write_text("The picnic is on Friday, 12 June, at 3 pm in the park. Anna brings the cake.\n")
    with visit(url, "/apps/write", tmp_path) as page:
        page.tab_to("#kind")
        page.type("An email")
        page.evaluate("document.querySelector('#kind').value = 'email'")
        page.tab_to("#words")
        page.type("60")
        page.tab_to("#about")
        page.type("The picnic of our team")
        page.choose("#files", file)
        page.tab_to("#plan-first")
        page.press("Enter")
        page.wait("!!document.querySelector('#outline').value.includes('## ')", seconds=60)
        finished(page, "#go", "Write")
        assert page.evaluate("document.activeElement.id") == "outline"
        page.tab_to("#go")
        page.press("Enter")
        page.wait("!!document.querySelector('#facts').textContent.includes('words of 60')", seconds=60)
        finished(page, "#go", "Write")
        look_at(page, "write", artifacts)


def test_a_lesson_with_the_keyboard(url, tmp_path, artifacts):
    with visit(url, "/apps/tutor", tmp_path) as page:
        page.tab_to("#topic")
        page.type("addition")
        page.evaluate("document.querySelector('#level').value = 'beginner'")
        page.tab_to("#go")
        page.press("Enter")
        page.wait("!!document.querySelector('.turn-exercise')", seconds=60)
        finished(page, "#go", "Begin")
        page.wait("document.activeElement.id === 'answer'")
        rungs = []
        for _ in range(4):  # a learner who fails each time climbs the ladder, one rung after the other
            rungs.append(page.evaluate("document.querySelector('.ladder [aria-current]').textContent"))
            count = page.evaluate("document.querySelectorAll('.said').length")
            page.type("987654")
            page.press("Enter")
            page.wait(f"document.querySelectorAll('.said:not([aria-busy])').length > {count}", seconds=60)
            finished(page, "#send", "Answer")
            page.wait("document.activeElement.id === 'answer'")
        assert rungs == ["Your own try", "A question", "A hint", "First step"]
        assert page.evaluate("document.querySelectorAll('.turn-worked').length") == 1
        assert page.evaluate("document.querySelector('.mine').textContent") == "You: 987654"
        look_at(page, "tutor", artifacts)
        page.open(url + "/apps/tutor")  # what was open is in the store
        page.tab_to("#topic")
        page.type("addition")
        page.press("Enter")
        page.wait("!!document.querySelector('.turn-exercise')", seconds=60)


def test_a_lesson_with_the_mouse_and_its_end(url, tmp_path):
    with visit(url, "/apps/tutor", tmp_path) as page:
        page.click("#go")
        assert "There is no topic yet" in page.wait("document.querySelector('#trouble').textContent")
        page.click("#topic")
        page.type("subtraction")
        page.evaluate("document.querySelector('#learner').value = 'Ann'")
        page.click("#go")
        page.wait("!!document.querySelector('.said:not([aria-busy])')", seconds=60)
        page.click("[data-command='/hint']")
        page.wait("document.querySelectorAll('.said:not([aria-busy])').length > 1", seconds=60)
        finished(page, "#send", "Answer")
        page.click("[data-command='/quit']")
        page.wait("!!document.querySelector('.turn-end')", seconds=60)
        finished(page, "#send", "Answer")
        assert page.evaluate("document.querySelector('#reply').hidden && !document.querySelector('#begin').hidden")
        page.evaluate("window.confirm = () => true")
        page.click("#forget")
        page.wait("!!document.querySelector('#state').textContent.startsWith('Deleted for “Ann”')")
