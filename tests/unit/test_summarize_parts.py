"""What `summarize` is made of: chunks along headings, the tree, numbers and names, sentences that are kept; a real model."""

import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import deepen
from deepen.apps.claims import Known, unsupported_names, unsupported_numbers
from deepen.apps.documents import make_document, passages, with_chapters
from deepen.apps.summary import Settings, summarize_documents
from deepen.apps.summary.chunks import Branch, Chunk, branch, depth, gather, pack, read_blocks
from deepen.apps.summary.said import Listener, central, kept, words_of
from deepen.engine.llamacpp import LlamacppEngine
from deepen.engine.openai import OpenAIEngine
from deepen.errors import OptionError
from tinygguf import write_tiny_gguf

DATA = Path(__file__).parents[3] / "shared" / "data"


def leaves(tree):
    return [tree] if isinstance(tree, Chunk) else [leaf for child in tree.children for leaf in leaves(child)]


def below(node):
    return [node] if isinstance(node, Chunk) else [each for member in node.members for each in below(member)]


def groups(node):
    return [] if isinstance(node, Chunk) else [node, *(each for member in node.members for each in groups(member))]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(1, 100))
def test_packing_keeps_the_order_fits_and_takes_few_runs(sizes, capacity):
    runs = pack(sizes, capacity)
    assert [size for run in runs for size in sizes[run]] == sizes
    assert all(sum(sizes[run]) <= capacity or len(sizes[run]) == 1 for run in runs)
    # no two neighbours could have been one where the greedy way, which takes the fewest, would have joined more
    fewest, held = 1, 0
    for size in sizes:
        if held and held + size > capacity:
            fewest, held = fewest + 1, 0
        held += size
    assert len(runs) == fewest


_HEADINGS = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 90)), min_size=1, max_size=25)


@given(_HEADINGS, st.integers(40, 400), st.integers(2, 6))
def test_every_word_is_in_one_chunk_in_order_and_every_chunk_in_one_group(sections, budget, most):
    words = itertools.count()
    text = "\n\n".join(f"{'#' * level} Part {number}\n\n" + " ".join(f"w{next(words)}" for _ in range(count))
                       for number, (level, count) in enumerate(sections))  # fmt: skip
    total = next(words)
    read = read_blocks([make_document("a.md", text, markdown=True)], lambda text: len(text.split()), budget)
    tree = branch(read.blocks, budget, "a")
    chunks = leaves(tree)
    assert [word for chunk in chunks for word in re.findall(r"\bw\d+\b", chunk.text)] == [f"w{n}" for n in range(total)]
    assert all(chunk.tokens <= budget for chunk in chunks)
    top = gather(tree, most)
    assert [chunk for node in top for chunk in below(node)] == chunks
    assert len(top) <= most
    assert all(2 <= len(group.members) <= most for node in top for group in groups(node))
    assert all(group.depth == 1 + max(map(depth, group.members)) for node in top for group in groups(node))
    assert isinstance(tree, Branch) == (sum(each.tokens for each in read.blocks) > budget)


def test_a_chunk_has_a_whole_chapter_before_it_has_a_part_of_two():
    sizes = {"One": 60, "Two": 150, "Three": 55, "Four": 55}
    text = "".join(
        f"# {name}\n\n" + "".join(f"## {name} {part}\n\n" + " ".join(f"{name}{part}x{n}" for n in range(size)) + "\n\n"
                                   for part in range(3))
        for name, size in sizes.items()
    )  # fmt: skip
    read = read_blocks([make_document("a.md", text, markdown=True)], lambda text: len(text.split()), 420)
    assert [chunk.label for chunk in leaves(branch(read.blocks, 420, "A"))] == [
        "A > One > One 0 … One 2",
        "A > Two > Two 0",
        "A > Two > Two 1 … Two 2",
        "A > Three … Four",
    ]


def test_what_stands_there_twice_is_read_once():
    text = "# A\n\n" + "Foot of the page. " * 100 + "\n\n# B\n\nNew.\n\n# C\n\n" + "Foot of the page. " * 100
    read = read_blocks([make_document(name, text, markdown=True) for name in ("a.md", "b.md")], len, 10_000)
    assert len(read.blocks) + read.repeated == sum(map(len, read.passages))
    assert read.repeated >= 4
    assert len({each.text for each in read.blocks}) == len(read.blocks)
    assert {each.document for each in read.blocks} == {0}


def test_pictures_in_letters_are_no_text():
    read = read_blocks(
        [make_document("a.md", f"![x](data:image/png;base64,{'iVBORw0K' * 4000})\n\nText.", markdown=True)], len, 9999
    )
    assert sum(each.tokens for each in read.blocks) < 300
    assert "Text." in read.blocks[-1].text


@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data")
def test_the_chapters_of_a_book_are_its_headings():
    wanted = {"Eliot_Adam_1859": ("Book Six", "Chapter LV"), "Trollope_Warden_1855": ("Chapter XXI",)}
    for name, last in wanted.items():
        text = (DATA / "text" / "novels" / f"{name}.txt").read_text(encoding="utf-8-sig")
        document = with_chapters(make_document(name, text, markdown=False))
        assert document.sections[-1].headings == last
        assert len(document.sections) > 20
        assert "".join(text[each.start : each.end] for each in document.sections).split() == text.split()
        assert passages(document)[-1].headings == last
    prose = make_document("a.txt", "It is in part I did not like.\nPart of it.\nchapter one is short.\n", markdown=False)
    assert with_chapters(prose) is prose


@pytest.mark.parametrize(
    ("summary", "source", "missing"),
    [
        ("1000 and 1,000 and 1 000", "1,000", []),
        ("1.5 million", "1,500,000", []),
        ("1,500,000", "1.5 million", []),
        ("50%", "fifty percent", []),
        ("fifty per cent", "50%", []),
        ("two dogs", "2 dogs", []),
        ("2 dogs", "both dogs", []),
        ("twenty-five", "25", []),
        ("three hundred and six thousand", "306,000", []),
        ("One of them", "nothing", []),
        ("3 May 2019", "2019-05-03", []),
        ("2019-05-03", "May 3, 2019", []),
        ("03.05.2019", "3 May 2019", []),
        ("4 May 2019", "3 May 2019", ["4"]),
        ("10:30", "at 10:30 h", []),
        ("10:45", "at 10:30 h", ["10:45"]),
        ("a range of 10-20", "10 to 20", []),
        ("3,5 and 3.5", "3.5", []),
        ("4.7", "4 and 7", ["4.7"]),
        ("5k", "5000", []),
        ("42, 43 and forty-four", "42", ["43", "forty-four"]),
        ("seven or 7", "8", ["7", "seven"]),
        ("$1.2 billion", "1.2 million", ["1.2 billion"]),
        ("1990s", "1990", []),
    ],
)
def test_numbers_are_known_in_every_form(summary, source, missing):
    assert unsupported_numbers(summary, Known([source])) == missing


@pytest.mark.parametrize(
    ("summary", "source", "missing"),
    [
        ("The town of Oslo lies there.", "OSLO", []),
        ("Then they met Bob. However, it rained.", "they met", ["Bob"]),
        ("- Most of it\n- *Some* of it, says Carl", "it", ["Carl"]),
        ("He saw Anna's house and the Browns.", "anna brown", []),
        ("It is the U.S. Army, or UK.", "US army, u.k.", []),
        ("He met Mr. Brownlow in Köln.", "Koln", ["Brownlow"]),
        ("## A Heading of Capitals\nIt is so.", "so", []),
        ('He said: "We go." I went.', "go", []),
        ("It was in March.", "2020-03-01", []),
        ("NASA flew.", "it flew", ["NASA"]),
    ],
)
def test_names_are_known_in_letters_of_any_size(summary, source, missing):
    assert unsupported_names(summary, Known([source])) == missing


def sentences_of(text, words=100, cut=False, headings=False):
    listener = Listener(words, "Summarize the text in at most 100 words, in plain sentences.", headings=headings)
    pieces = (text[start : start + 5] for start in range(0, len(text), 5))
    return [each.text for each in kept(pieces, listener, lambda: cut)]


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (
            "Here are the key points:\n\n1. One is first.\n2) Two is\nsecond of all.\n",
            ["One is first.", "Two is second of all."],
        ),
        ("He met Mr. Hu of the U.S. Army, e.g. twice. He left.", ["He met Mr. Hu of the U.S. Army, e.g. twice.", "He left."]),
        ("Summarize the text in at most 100 words. It is good.", ["It is good."]),
        ("It uses a different kind of account, and it uses a different kind of account. So be it.", ["So be it."]),
        ("这是一个很长的句子。第二个句子在这里说明。", ["这是一个很长的句子。", "第二个句子在这里说明。"]),
        ("**Head**\nText is here.", ["Text is here."]),
    ],
)
def test_sentences_are_kept_whole_and_only_if_they_say_something(said, wanted):
    assert sentences_of(said) == wanted


def test_a_last_sentence_that_was_cut_is_left_out():
    assert sentences_of("It is whole as it is. It is not", cut=True) == ["It is whole as it is."]
    assert sentences_of("It is whole as it is. It is not", cut=False)[1:] == ["It is not"]
    assert sentences_of("It is all there is", cut=True) == ["It is all there is"]


def test_central_sentences_are_the_texts_own():
    text = "# Head\n\nAll cats sleep. Cats and dogs sleep at night.\n\n| cats |\n\n```\ncode cats\n```\nThe moon is far away."
    assert [each.text for each in central(text, 9)] == ["All cats sleep.", "Cats and dogs sleep at night."]
    assert len(words_of(central("word " * 5000, 20)[0].text)) <= 20
    assert central("x", 5)[0].text == "x"


def test_a_context_that_is_too_small_is_refused(tmp_path):
    pytest.importorskip("xllamacpp")
    model = write_tiny_gguf(tmp_path / "tiny.gguf")
    with contextlib.closing(LlamacppEngine(model)) as engine, pytest.raises(OptionError, match="a context of 512 tokens"):
        summarize_documents([engine], [make_document("a.md", "Some text.", markdown=True)])


def test_a_server_that_tells_its_tokens_is_asked_for_them(tmp_path, monkeypatch):
    pytest.importorskip("xllamacpp")
    model = write_tiny_gguf(tmp_path / "tiny.gguf", context=2048)
    with contextlib.closing(LlamacppEngine(model)) as llama:
        monkeypatch.setenv("DEEPEN_API_KEY", llama._key)
        remote = OpenAIEngine(llama._address.geturl(), "tiny")
        assert remote.count_tokens("the other </s>") == len(llama.tokenize("the other </s>"))
        assert remote.find_context() == 2048
        text = " ".join(f"Sentence {number} tells of thing {number}." for number in range(120))
        document = make_document("a.md", text, markdown=True)
        settings = Settings(length=20, chunk_tokens=600)
        found = [summarize_documents([engine] * 2, [document], settings) for engine in (llama, remote)]
    assert found[0].chunks.counted
    assert found[1].chunks.counted
    assert found[0].chunks.tokens == found[1].chunks.tokens > 2000
    assert found[0].calls == found[1].calls > 4


@pytest.mark.slow
def test_smollm2_killed_and_resumed_is_undisturbed(smollm2, tmp_path, monkeypatch):
    town = "Town {0} has {1} mills. It lies by the river {0}. Bread is made there. "
    topics = [f"# Topic {number}\n\n" + town.format(number, number + 3) * 9 for number in range(4)]
    page = tmp_path / "towns.md"
    page.write_text("\n\n".join(topics), encoding="utf-8")
    options = {"length": 30, "chunk_tokens": 300, "context": 700, "parallel": 2}
    monkeypatch.setenv("DEEPEN_CACHE", str(tmp_path / "one"))
    whole = deepen.summarize(smollm2, page, cite=True, **options)
    assert whole.chunks.count >= 4
    assert whole.summary
    assert Counter(re.findall(r"\[(\d+)\]", whole.summary)).keys() == {str(each.id) for each in whole.citations}
    monkeypatch.setenv("DEEPEN_CACHE", str(tmp_path / "two"))
    words = ["--length", "30", "--chunk-tokens", "300", "--context", "700", "--parallel", "2", "--cite"]
    command = [sys.executable, "-m", "deepen", "summarize", smollm2, page, *words]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=os.environ.copy())
    folder, until = tmp_path / "two" / "summarize", time.monotonic() + 120
    while running.poll() is None and time.monotonic() < until:
        if any(file.stat().st_size for file in (folder.iterdir() if folder.is_dir() else ())):
            break
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    again = deepen.summarize(smollm2, page, cite=True, **options)
    assert 1 <= again.chunks.resumed < again.calls
    assert again.summary == whole.summary
