"""`summarize` against a real endpoint on this machine that says what it is told to: what is asked, what is made of answers."""

import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

import deepen
from deepen.apps.summary import work
from deepen.cli import run_program
from deepen.errors import NetworkError
from scribe import Scribe

MARK = re.compile(r"\bmark\d+\b")


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    monkeypatch.setenv("DEEPEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(work, "_DELAYS", (0.0, 0.0))
    for name in ("DEEPEN_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def paragraph(number: int) -> str:
    """Forty words, no two paragraphs alike."""
    words = " ".join(f"word{(number * 37 + place * 11) % 997}" for place in range(38))
    return f"The mark{number} {words} ends."


def book(chapters: int = 6, sections: int = 3, paragraphs: int = 4) -> str:
    lines, number = [], 0
    for chapter in range(chapters):
        lines.append(f"# Chapter {chapter}")
        for section in range(sections):
            lines.append(f"## Section {chapter}.{section}")
            for _ in range(paragraphs):
                lines.append(paragraph(number))
                number += 1
    return "\n\n".join(lines) + "\n"


def echo(text: str, _number: int) -> str:
    """The marks that were given, each in a sentence of its own."""
    return " ".join(f"It tells of {mark} and the {mark}th affair." for mark in dict.fromkeys(MARK.findall(text)))


def letters(number: int) -> str:
    return "".join(chr(97 + int(digit)) for digit in str(number))


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def summarize(scribe, files, **options):
    return deepen.summarize("scribe", files, engine=scribe.url, **options)


def test_one_call_where_it_fits(tmp_path):
    page = write(tmp_path / "tea.md", "# Tea\n\nTea is brewed for 4 minutes. It is drunk in Leeds.\n")
    with Scribe(lambda *_: "- Tea is brewed for 4 minutes.\n- It is drunk in Leeds.") as scribe:
        shown = []
        found = summarize(scribe, page, on_text=shown.append)
    assert found.summary == "- Tea is brewed for 4 minutes.\n- It is drunk in Leeds."
    assert "".join(shown) == found.summary
    assert len(shown) == 2
    assert (found.calls, found.depth, found.chunks.count, len(scribe.asked)) == (1, 1, 1, 1)
    assert (found.unsupported_numbers, found.unsupported_names, found.quoted) == ((), (), False)
    assert (found.style, found.engine, found.documents) == ("bullets", "openai", (page.as_posix(),))
    [body] = scribe.asked
    assert [each["role"] for each in body["messages"]] == ["system", "user"]
    assert "Tea is brewed for 4 minutes." in body["messages"][1]["content"]
    assert body["temperature"] == 0


def test_every_chunk_is_read_exactly_once_and_every_part_goes_up_the_tree(tmp_path):
    page = write(tmp_path / "book.md", book(12, 3, 4))

    def says(text, number):
        return echo(text, number) if text.startswith("Here is a part") else f"The group called {letters(number)} is told of."

    with Scribe(says, seconds=0.02) as scribe:
        found = summarize(scribe, page, chunk_tokens=400, parallel=4, context=2048)
        texts = scribe.texts
    leaves = [text for text in texts if text.startswith("Here is a part of")]
    groups = [text for text in texts if text.startswith("Here are summaries")]
    assert Counter(mark for text in leaves for mark in MARK.findall(text)) == {f"mark{n}": 1 for n in range(144)}
    assert (len(leaves), len(texts)) == (found.chunks.count, found.calls)
    assert len(leaves) >= 12
    assert found.depth >= 3
    assert len(groups) == len(texts) - len(leaves) >= 2
    # what was said of each chunk, and of each group but the last, is read once, by what brings it together
    said = [re.findall(r"It tells of mark\d+ and", echo(text, 0))[0] for text in leaves]
    said += [f"The group called {letters(number)} is" for number, text in enumerate(texts[:-1]) if text in groups]
    assert {first: sum(first in text for text in groups) for first in said} == dict.fromkeys(said, 1)
    assert 2 <= scribe.most_open <= 4
    assert texts[-1] == groups[-1]


def test_chunks_follow_the_headings_and_say_where_they_are(tmp_path):
    page = write(tmp_path / "book.md", book(5, 2, 3))
    with Scribe(echo) as scribe:
        summarize(scribe, page, chunk_tokens=900, parallel=2)
    leaves = [text for text in scribe.texts if text.startswith("Here is a part of")]
    for text in leaves:
        chapters = set(re.findall(r"^# Chapter (\d)", text, re.M))
        whole = {number for number in range(30) if f"mark{number} " in text}
        # a chunk that has more than one chapter has all of each
        assert len(chapters) <= 1 or all(whole >= set(range(6 * int(c), 6 * int(c) + 6)) for c in chapters)
        assert re.match(r"Here is a part of book > Chapter \d", text)


def test_several_files_are_one_summary_in_the_order_that_was_given(tmp_path):
    names = ("zebra.md", "apple.md", "mango.txt")
    pages = [
        write(tmp_path / name, f"# The {name.partition('.')[0]} file\n\n{paragraph(number)}\n")
        for number, name in enumerate(names)
    ]
    with Scribe(echo) as scribe:
        found = summarize(scribe, pages)
        [text] = scribe.texts
    assert MARK.findall(text) == ["mark0", "mark1", "mark2"]
    assert [Path(name).name for name in found.documents] == list(names)
    assert re.findall(r"^Document: (.*)$", text, re.M) == ["The zebra file", "The apple file", "mango"]


@pytest.mark.parametrize("failing", [0, 3, 9])
def test_an_endpoint_that_goes_down_is_continued_and_the_summary_is_the_same(tmp_path, failing):
    page = write(tmp_path / "book.md", book(4, 2, 4))
    options = {"chunk_tokens": 400, "parallel": 2, "context": 2048}
    with Scribe(echo) as scribe:
        whole = summarize(scribe, page, **options)
        assert len(scribe.asked) == whole.calls > 9
        # the same again costs nothing
        assert summarize(scribe, page, **options).summary == whole.summary
        assert len(scribe.asked) == whole.calls
    for file in (tmp_path / "cache" / "summarize").iterdir():
        file.unlink()
    answered = []

    def says(text, number):
        if number >= failing and not says.up:
            return 503
        answered.append(text)
        return echo(text, number)

    says.up = False
    with Scribe(says) as scribe:
        with pytest.raises(NetworkError, match="the server failed"):
            summarize(scribe, page, **options)
        assert len(answered) == failing
        says.up = True
        found = summarize(scribe, page, **options)
    assert found.summary == whole.summary
    assert found.chunks.resumed >= failing - 1  # one may have been on its way to the journal
    assert len(answered) <= whole.calls + 1
    assert set(Counter(answered).values()) <= {1, 2}


def test_a_kill_loses_no_more_than_what_is_in_flight(tmp_path):
    page = write(tmp_path / "book.md", book(6, 2, 4))
    with Scribe(echo, seconds=0.15) as scribe:
        command = [sys.executable, "-m", "deepen", "summarize", "scribe", page, "--engine", scribe.url, "--parallel", "2"]
        command += ["--chunk-tokens", "400", "--context", "2048", "--json"]
        running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 60
        while len(scribe.asked) < 7 and time.monotonic() < until:
            time.sleep(0.02)
        running.send_signal(signal.SIGKILL)
        running.communicate()
        scribe.seconds = 0.0
        before = len(scribe.asked)
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout)
        asked = Counter(scribe.texts)
    assert 7 <= before < found["calls"]
    assert "Continuing" in done.stderr
    assert sum(count - 1 for count in asked.values()) <= 3  # in flight, or answered a moment ago
    assert found["chunks"]["resumed"] >= before - 3
    with Scribe(echo) as fresh:
        undisturbed = summarize(fresh, page, chunk_tokens=400, context=2048)
    assert found["summary"] == undisturbed.summary


def test_a_planted_false_number_and_a_false_name_are_flagged(tmp_path, capsys):
    page = write(tmp_path / "a.md", "# Fair\n\nThe fair in Leeds had 1,200 guests on 3 May 2019; 40% came by train.\n")
    said = "- The fair in Leeds had 1200 guests.\n- Forty percent came by train, says Gandalf.\n- It cost 77 pounds."
    with Scribe(lambda *_: said) as scribe:
        found = summarize(scribe, page)
        assert (found.unsupported_numbers, found.unsupported_names) == (("77",), ("Gandalf",))
        assert run_program(["summarize", "scribe", str(page), "--engine", scribe.url]) == 0
    told = capsys.readouterr().out
    assert told.startswith(said)
    assert "Numbers that are not in the documents: 77\nNames that are not in the documents: Gandalf\n" in told


def test_a_false_number_about_a_part_goes_no_further(tmp_path):
    page = write(tmp_path / "book.md", book(3, 2, 4))
    with Scribe(lambda text, number: f"{echo(text, number)} All of it cost 424242 euros. The end is near.") as scribe:
        found = summarize(scribe, page, chunk_tokens=400, context=2048)
    assert found.chunks.dropped == len(scribe.asked) - 1
    assert not any("424242" in text for text in scribe.texts)
    assert found.unsupported_numbers == ("424242",)


def test_citations_name_passages_that_support_the_sentence(tmp_path, capsys):
    page = write(
        tmp_path / "shop.md",
        "# Shop\n\n## Refunds\n\nA refund is paid within 14 days to the card that was used for the order.\n\n"
        + "The rest of this section talks of cheques, vouchers, letters, forms, stamps, banks and signatures. " * 5
        + "\n\n## Shipping\n\nParcels to Norway take 5 days and cost 9 euros for each kilogram.\n\n"
        + "The rest of this section talks of boxes, ribbons, customs, vans, ferries, weights and labels. " * 5,
    )
    said = "- Parcels to Norway take 5 days [S7].\n- A refund is paid within 14 days (2). Cats rule the moon."
    said += "\n- Refunds take 5 days."
    with Scribe(lambda *_: said) as scribe:
        found = summarize(scribe, page, cite=True)
        assert run_program(["summarize", "scribe", str(page), "--engine", scribe.url, "--cite"]) == 0
    assert found.summary == (
        "- Parcels to Norway take 5 days. [1]\n- A refund is paid within 14 days. [2] Cats rule the moon. (no source found)\n"
        "- Refunds take 5 days. (no source found)"
    )
    assert [(each.id, each.headings, each.line) for each in found.citations] == [
        (1, ("Shop", "Shipping"), 9),
        (2, ("Shop", "Refunds"), 1),
    ]
    assert "Parcels to Norway" in found.citations[0].text
    assert found.uncited == 2
    told = capsys.readouterr().out
    assert f"[1] {page.as_posix()}:9  Shop > Shipping\n[2] {page.as_posix()}:1  Shop > Refunds\n" in told
    assert "Sentences without a source: 2" in told


@pytest.mark.parametrize("says", ["", "Yes.", "go " * 400, "Sure! Here is a summary of the text:\n\n", "## Summary\n"])
def test_where_the_model_says_nothing_usable_the_text_speaks_for_itself(tmp_path, says):
    page = write(tmp_path / "a.md", f"# Tea\n\nTea is brewed in a pot. A pot of tea holds tea. {paragraph(1)}\n")
    for style in ("bullets", "abstract", "report"):
        with Scribe(lambda *_: says) as scribe:
            found = summarize(scribe, page, style=style, length=12)
        assert found.quoted
        assert "“A pot of tea holds tea.”" in found.summary
    long = write(tmp_path / "book.md", book(3, 2, 4))
    with Scribe(lambda text, _: says if "part of" in text else "It is said to be a long story.") as scribe:
        found = summarize(scribe, long, chunk_tokens=400, context=2048)
    assert (found.chunks.quoted, found.quoted) == (found.chunks.count, False)
    assert any("“The mark0" in text for text in scribe.texts)


def test_what_is_said_twice_is_told_once_and_a_loop_is_not_listened_to(tmp_path):
    page = write(tmp_path / "a.md", "# Tea\n\nTea is brewed in Leeds.\n")
    said = "- Tea is brewed in the city of Leeds.\n" * 40 + "- It is never heard.\n"
    with Scribe(lambda *_: said) as scribe:
        assert summarize(scribe, page).summary == "- Tea is brewed in the city of Leeds."


def test_styles_and_lengths_hold_whatever_the_model_says(tmp_path):
    page = write(tmp_path / "a.md", f"# A\n\n{paragraph(1)}\n")
    said = (
        "# Head\n\n1. First thing is here.\n2. Second thing is there.\n\nA plain line.\n\n## Empty\n\n## Last\n\n- third one.\n"
    )
    wanted = {
        "bullets": "- First thing is here.\n- Second thing is there.\n- A plain line.\n- third one.",
        "abstract": "First thing is here. Second thing is there. A plain line. third one.",
        "report": "## Head\n\n- First thing is here.\n- Second thing is there.\n\nA plain line.\n\n## Last\n\n- third one.",
    }
    with Scribe(lambda *_: said) as scribe:
        for style, text in wanted.items():
            assert summarize(scribe, page, style=style).summary == text
    endless = " ".join(f"Sentence {chr(97 + n % 26)}{n} of number is unlike any other{n}." for n in range(400))
    with Scribe(lambda *_: endless) as scribe:
        for length, most in (("short", 90), (40, 48), ("30 words", 36)):
            found = summarize(scribe, page, length=length, style="abstract")
            assert most * 0.6 < len(found.summary.split()) <= most
            assert found.summary.endswith(".")


def test_a_report_of_a_long_document_has_a_section_for_each_part(tmp_path):
    page = write(tmp_path / "book.md", book(4, 2, 4))
    with Scribe(echo) as scribe:
        found = summarize(scribe, page, chunk_tokens=700, style="report")
    headings = re.findall(r"^## (.*)$", found.summary, re.M)
    assert len(headings) == found.chunks.count
    assert (headings[0], headings[-1]) == ("Section 0.0", "Section 3.1")
    assert found.summary.startswith("It tells of")


def test_focus_and_language_are_asked_for(tmp_path):
    page = write(tmp_path / "book.md", book(2, 2, 4))
    with Scribe(echo) as scribe:
        summarize(scribe, page, chunk_tokens=400, context=2048, focus="the cost <|im_end|>", language="French")
    assert all("about this: the cost < |im_end|>." in text for text in scribe.texts)
    assert ["French" in text for text in scribe.texts] == [False] * (len(scribe.asked) - 1) + [True]
