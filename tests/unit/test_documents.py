"""Documents: what is read of each kind, where passages lie, and that hostile files stay data within bounds."""

import json
import os
import sys
import time
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepen.apps.documents import Reader, Unreadable, find_documents, make_document, neutral, passages
from deepen.apps.documents.passages import WORDS
from deepen.errors import DataError

MARKDOWN = """---
title: "Refunds"
date: 2025-03-01
keywords: money, back
---

Some words before the first heading, enough of them.

# Paying back

## By card

{card}

## By cheque

{cheque}

```
# no heading, but code
```

Underlined
----------

{under}
"""


def words(count: int, stem: str = "word") -> str:
    return " ".join(f"{stem}{number}" for number in range(count))


def read(path: Path, reader: Reader | None = None):
    (source,) = find_documents([path]).sources
    with reader or Reader() as opened:
        return opened.read(source, path.read_bytes())


def pdf(path: Path, *contents: bytes, extra: bytes = b"") -> Path:
    """A PDF by hand: a page for each content stream, which is compressed."""
    count = len(contents)
    kids = b" ".join(b"%d 0 R" % (4 + 2 * number) for number in range(count))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [" + kids + b"] /Count %d >>" % count,
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, content in enumerate(contents):
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Contents %d 0 R"
            b" /Resources << /Font << /F1 3 0 R >> >> >>" % (5 + 2 * number)
        )
        objects.append(b"<< /Filter /FlateDecode /Length %d >>\nstream\n" % len(content) + content + b"\nendstream")
    data, offsets = b"%PDF-1.4\n", []
    for number, each in enumerate(objects, start=1):
        offsets.append(len(data))
        data += b"%d 0 obj\n" % number + each + b"\nendobj\n"
    start = len(data)
    data += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    data += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    data += b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start) + extra
    path.write_bytes(data)
    return path


def page(text: str) -> bytes:
    return zlib.compress(b"BT /F1 12 Tf 50 700 Td (" + text.encode() + b") Tj ET")


def test_markdown_has_its_title_date_headings_and_lines(tmp_path):
    text = MARKDOWN.format(card=words(100, "card"), cheque=words(100, "cheque"), under=words(100, "under"))
    (tmp_path / "refunds.md").write_text(text)
    document = read(tmp_path / "refunds.md")
    assert (document.title, document.date, document.about) == ("Refunds", "2025-03-01", "money, back")
    found = passages(document)
    # what comes before a section and is short goes with it
    assert found[0].text.startswith("Some words")
    assert [each.headings for each in found] == [
        ("Paying back", "By card"),
        ("Paying back", "By cheque"),
        ("Paying back", "Underlined"),
    ]
    lines = text.split("\n")
    for each in found:
        assert text[each.start :].startswith(each.text)
        assert lines[each.line - 1] == each.text.split("\n")[0]
    assert "no heading, but code" in found[1].text


@given(st.text(alphabet=st.sampled_from("ab \n#-=`.\r\t€"), max_size=400), st.integers(1, 30))
def test_passages_hold_every_word_once_and_in_order(text, most):
    document = make_document("x.md", text, markdown=True)
    assert "".join(text[each.start : each.end] for each in document.sections) == text
    found = passages(document, most)
    assert [word for each in found for word in each.text.split()] == text.split()
    for each in found:
        assert text[each.start : each.start + len(each.text)] == each.text
        assert text.count("\n", 0, each.start) == each.line - 1


def test_a_long_section_is_cut_between_paragraphs():
    text = "# Long\n\n" + "\n\n".join(words(90) for _ in range(10))
    found = passages(make_document("x.md", text, markdown=True))
    assert len(found) >= 5
    assert all(len(each.text.split()) <= WORDS and each.headings == ("Long",) for each in found)
    assert all(each.text.endswith("word89") for each in found)


def test_html_shows_what_a_reader_sees(tmp_path):
    (tmp_path / "page.html").write_text(
        "<html><head><title>A  page</title><style>h1 {color: red}</style><script>alert('x')</script></head><body>"
        "<h1>Top</h1><p>Fish &amp; chips<br>cost 5 &euro;</p><script>steal()</script><noscript>none</noscript>"
        "<h2>Below <b>it</b></h2><ul><li>one<li>two</ul><pre># no heading</pre><!-- a comment --></body></html>"
    )
    document = read(tmp_path / "page.html")
    assert document.title == "A page"
    assert "Fish & chips" in document.text
    assert "5 €" in document.text
    for hidden in ("alert", "color", "steal", "none", "comment"):
        assert hidden not in document.text
    assert [each.headings for each in document.sections][:2] == [("Top",), ("Top", "Below it")]


def test_a_notebook_is_its_cells(tmp_path):
    cells = [
        {"cell_type": "markdown", "source": ["# Loops\n", "They repeat."], "metadata": {}},
        {"cell_type": "code", "source": "# a comment\nfor x in y: pass", "outputs": [{"text": "SECRET"}], "metadata": {}},
    ]
    (tmp_path / "a.ipynb").write_text(json.dumps({"cells": cells, "nbformat": 4}))
    document = read(tmp_path / "a.ipynb")
    assert document.title == "Loops"
    assert "for x in y" in document.text
    assert "SECRET" not in document.text
    assert len(document.sections) == 1


def test_a_pdf_has_pages(tmp_path):
    pytest.importorskip("pypdf")
    document = read(pdf(tmp_path / "a.pdf", page("First page"), page("Second page")))
    assert [line.strip() for line in document.text.split("\f")] == ["First page", "Second page"]
    (tmp_path / "b.pdf").write_bytes((tmp_path / "a.pdf").read_bytes())
    long = read(pdf(tmp_path / "c.pdf", page(words(200)), page(words(200))))
    assert [each.page for each in passages(long)] == [1, 2]


def test_only_documents_are_found_and_no_link_leads_out(tmp_path):
    folder, outside = tmp_path / "docs", tmp_path / "outside"
    (folder / "deep").mkdir(parents=True)
    (folder / ".git").mkdir()
    outside.mkdir()
    for place in (folder / "a.md", folder / "deep" / "b.txt", folder / ".git" / "c.md", folder / "d.png", outside / "e.md"):
        place.write_text("text")
    (folder / "out.md").symlink_to(outside / "e.md")
    (folder / "out").symlink_to(outside)
    (folder / "in.md").symlink_to(folder / "a.md")
    (folder / "broken.md").symlink_to(folder / "nowhere.md")
    os.mkfifo(folder / "pipe.md")
    found = find_documents([folder])
    assert [each.name for each in found.sources] == ["a.md", "deep/b.txt"]
    reasons = dict(found.skipped)
    assert reasons["out.md"] == "a link that leads out of the folder"
    assert reasons["pipe.md"] == "not a regular file"
    assert "broken.md" in reasons
    with pytest.raises(DataError, match="no such file or folder"):
        find_documents([tmp_path / "missing"])
    # names stay apart, and one file is read once
    again = find_documents([folder, outside, folder / "a.md"])
    assert [each.name for each in again.sources] == ["docs/a.md", "docs/deep/b.txt", "outside/e.md"]


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.md", b"\x7fELF\x02\0\0\0" * 100, "binary"),
        ("b.txt", b"caf\xe9", "not a text in UTF-8"),
        ("c.ipynb", b'{"cells": 3}', "not a notebook"),
        ("d.ipynb", b"[" * 100_000, "not a notebook"),
        ("e.ipynb", b'{"cells": [{"cell_type": "code", "source": {"a": 1}}]}', "not a notebook"),
        ("f.pdf", b"no pdf at all", "not a PDF"),
        ("g.pdf", b"%PDF-1.4\n" + b"garbage " * 100, "broken"),
        ("h.html", b"<p>\0</p>", "binary"),
    ],
)
def test_what_is_no_document_says_why(tmp_path, name, data, reason):
    if name.endswith(".pdf"):
        pytest.importorskip("pypdf")
    (tmp_path / name).write_bytes(data)
    with pytest.raises(Unreadable, match=reason):
        read(tmp_path / name)


def test_an_encrypted_pdf_is_said_to_be_one(tmp_path):
    pypdf = pytest.importorskip("pypdf")
    writer = pypdf.PdfWriter(clone_from=pdf(tmp_path / "plain.pdf", page("secret")))
    writer.encrypt("password", algorithm="RC4-128")
    writer.write(tmp_path / "locked.pdf")
    with pytest.raises(Unreadable, match="encrypted"):
        read(tmp_path / "locked.pdf")
    writer = pypdf.PdfWriter(clone_from=tmp_path / "plain.pdf")
    writer.encrypt("", algorithm="RC4-128")  # opens without a password
    writer.write(tmp_path / "open.pdf")
    assert "secret" in read(tmp_path / "open.pdf").text


def test_a_zip_bomb_costs_bounded_memory_and_time(tmp_path):
    pytest.importorskip("pypdf")
    import resource

    squeeze = zlib.compressobj(9)
    bomb = b"".join(squeeze.compress(b" " * (1 << 20)) for _ in range(2000)) + squeeze.flush()
    file = pdf(tmp_path / "bomb.pdf", bomb)
    assert file.stat().st_size < 3 << 20
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(Unreadable):
        read(file, Reader(seconds=10))
    assert time.monotonic() - start < 60
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 300 << 10, "kilobytes"
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < (3 << 20), "kilobytes"


def test_a_file_that_takes_too_long_is_left_out_and_the_next_one_is_read(tmp_path):
    slow, good = tmp_path / "slow.html", tmp_path / "good.html"
    slow.write_text("<p>" + "x <b>y</b> " * 700_000)
    good.write_text("<h1>Good</h1>")
    found = {each.name: each for each in find_documents([tmp_path]).sources}
    with Reader(seconds=0.5) as reader:
        with pytest.raises(Unreadable, match="not parsed in"):
            reader.read(found["slow.html"], slow.read_bytes())
        reader._seconds = 20
        assert reader.read(found["good.html"], good.read_bytes()).title == "Good"


@pytest.mark.parametrize(
    "text", ["word " * 2_000_000, "x" * 10_000_000, "# " * 5_000_000, "<" * 10_000_000, "[a](" * 2_000_000]
)
def test_ten_megabytes_on_one_line_are_cut_in_bounded_time(text):
    from deepen.apps.knowledge import plain

    start = time.process_time()
    found = passages(make_document("x.md", text, markdown=True))
    for each in found:
        plain(each.text)
    assert max(len(each.text) for each in found) <= 12 * WORDS
    assert sum(len(each.text) for each in found) >= len(text.strip()) - 2 * len(found)
    assert time.process_time() - start < 60


@pytest.mark.parametrize(
    "mark",
    ["<|im_start|>", "<|im_end|>", "</s>", "<s>", "<start_of_turn>", "<|eot_id|>", "[INST]", "[/INST]", "<<SYS>>", "[gMASK]",
     "<\uff5cUser\uff5c>", "<|endoftext|>", "[S1]"],
)  # fmt: skip
def test_marks_of_templates_are_broken_up(mark):
    made = neutral(f"before {mark}after {mark}{mark}")
    assert mark not in made
    assert made.replace(" ", "") == f"before {mark}after {mark}{mark}".replace(" ", "")


def test_other_text_is_left_as_it_is():
    text = "if a < b and c > d: x[0] = y  # see [the page](http://a.b/c) [1] and [note]\n## Users: who they are\n"
    assert neutral(text) == text
    assert neutral("### User:\nhello\n### Assistant: yes") == "User:\nhello\nAssistant: yes"


@given(st.lists(st.sampled_from(["<", ">", "|", "s", "/", "[", "]", "INST", "S1", " ", "im_end"]), max_size=12))
def test_no_mark_can_be_nested_so_that_one_is_left(parts):
    made = neutral("".join(parts))
    for mark in ("<s>", "</s>", "<|im_end|>", "[INST]", "[/INST]", "[S1]"):
        assert mark not in made


def test_special_tokens_of_a_document_are_no_special_tokens_for_an_engine(tmp_path):
    pytest.importorskip("xllamacpp")
    from contextlib import closing

    from deepen.engine.llamacpp import LlamacppEngine
    from tinygguf import write_tiny_gguf

    with closing(LlamacppEngine(write_tiny_gguf(tmp_path / "tiny.gguf"))) as engine:
        hostile = "a</s>b<s>c"
        assert set(engine.tokenize(hostile)) & {0, 1} == {0, 1}
        assert not set(engine.tokenize(neutral(hostile))) & {0, 1}


def test_reading_needs_no_torch(tmp_path):
    import subprocess

    code = (
        "import sys, deepen.apps.documents, deepen.apps.knowledge; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
