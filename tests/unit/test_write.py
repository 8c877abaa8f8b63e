"""Write: outlines, lengths, what repeats, revisions, resuming, what is refused; whatever the model says."""

import json
import re

import pytest

import deepen
from author import FACTS, OUTLINE, Author, prose, write
from deepen.apps.documents import find_documents
from deepen.apps.writing import KINDS, check_assignment, compose, read_facts
from deepen.apps.writing.prose import count_words
from deepen.cli import run_program
from deepen.engine import Chunk
from deepen.errors import DataError, NetworkError, OptionError
from scribe import Scribe


@pytest.fixture
def facts(tmp_path):
    file = tmp_path / "facts.md"
    file.write_text(FACTS, encoding="utf-8")
    return file


@pytest.mark.parametrize("words", [40, 130, 300, 1000])
@pytest.mark.parametrize("kind", KINDS)
def test_the_target_is_kept_and_the_counts_are_true(kind, words):
    shown = []
    writing, _ = write(kind=kind, words=words, on_text=shown.append)
    assert "".join(shown) == writing.text
    assert writing.within_target
    assert abs(len(re.sub(r"#+ ", "", writing.text).removeprefix("Subject: ").split()) - words) <= 0.15 * words
    assert writing.words == count_words(re.sub(r"^Subject: ", "", writing.text))
    assert (writing.target_words, writing.kind, writing.engine) == (words, kind, "openai")
    for section in writing.sections:
        assert section.words == count_words(section.text)
        assert section.text in writing.text
    headed = KINDS[kind].headed and len(writing.sections) > 1
    assert all((f"## {section.heading}" in writing.text) == headed for section in writing.sections)


def test_a_kind_has_its_own_length():
    for kind, wanted in KINDS.items():
        assert write(kind=kind)[0].target_words == wanted.words


def test_a_model_that_says_little_is_asked_for_more():
    count = iter(range(10_000))
    writing, scribe = write(lambda text, _: OUTLINE if "`Title" in text else prose(24, 3 * next(count)), words=200)
    assert writing.within_target
    assert any(text.startswith("Go on") for text in scribe.texts)


def test_a_model_that_says_too_much_is_stopped_at_the_end_of_a_sentence():
    writing, _ = write(lambda text, number: OUTLINE if "`Title" in text else prose(3000, 500 * number), words=150)
    assert writing.within_target
    assert all(re.search(r"[.!?]$", section.text) for section in writing.sections)


def test_what_cannot_be_reached_is_said():
    writing, _ = write(lambda text, _: OUTLINE if "`Title" in text else "The sea is wide and blue today.", words=400)
    assert not writing.within_target
    assert writing.words < 40
    assert writing.text.count("The sea is wide") == 1


def test_the_outline_of_the_model_is_taken_if_it_is_one():
    writing, _ = write(words=150)
    assert (writing.title, writing.outline_origin) == ("Sending parcels", "model")
    assert [each.heading for each in writing.outline] == ["Delivery", "Money"]
    assert writing.outline[0].points == ("how long it takes",)
    assert "## Delivery\n\n" in writing.text


@pytest.mark.parametrize(
    "says",
    [
        "",
        "I would be glad to help you!",
        "Title: x\n1. [Heading]: [what it says]\n",
        "Title: x\n1. 1. Heading: what it says\n2. 2. Heading: more\n",
        "1. Only one: thing\n",
        "Outline\n" * 50,
    ],
)
def test_a_template_stands_in_for_what_is_no_outline(says):
    for kind, wanted in KINDS.items():
        writing, _ = write({"outline": says}, kind=kind, words=600)
        assert writing.outline_origin == "template"
        assert writing.outline == tuple(planned for planned, _ in wanted.sections)
        assert writing.title in {"Sending parcels", "x"}


def test_an_outline_is_printed_changed_and_taken_back(tmp_path, capsys):
    with Scribe(Author()) as scribe:
        words = ["write", "scribe", "--engine", scribe.url, "--kind", "article", "--about", "parcels"]
        assert run_program([*words, "--outline"]) == 0
        printed = capsys.readouterr().out
        assert printed == "# Sending parcels\n\n## Delivery\n- how long it takes\n\n## Money\n- what is paid back\n"
        assert len(scribe.asked) == 1
        file = tmp_path / "outline.md"
        file.write_text(printed.replace("## Money", "## Costs in 2031"), encoding="utf-8")
        assert run_program([*words, "--outline-file", str(file), "--json"]) == 0
        writing = json.loads(capsys.readouterr().out)
    assert [each["heading"] for each in writing["sections"]] == ["Delivery", "Costs in 2031"]
    assert writing["outline_origin"] == "file"
    assert not any("`Title: ...`" in text for text in scribe.texts[1:])
    assert "2031" not in {each["text"] for each in writing["unsupported"]}, "the user wrote it"


def test_repetitions_echoes_remarks_and_headings_are_left_out():
    says = (
        "# Sending parcels\n\n## Delivery\n\nSure, here is the section you wanted:\n\nThe postman comes early each day. The"
        " postman comes early each day. This article discusses parcels of all sizes. Write about 67"
        " words about sending parcels, as an article, under the heading. Boxes are made of brown paper and string [S4]."
        f"{' very' * 13}. [Insert name here] rides a bike.\n\n## Money\n\nNever say it."
    )
    writing, _ = write({"section": says, "more": ""}, words=100)
    assert writing.sections[0].text == "The postman comes early each day. Boxes are made of brown paper and string."
    assert "## Delivery" in writing.text


def test_a_loop_ends_the_request():
    endless = "The cat sat on the mat today. " * 5000
    with Scribe(Author(section=endless, more=endless)) as scribe:
        deepen.write("scribe", kind="story", about="a cat", engine=scribe.url, words=100)
        assert len(scribe.asked) < 20


def test_lists_stay_lists():
    says = "What you need is this:\n\n1. A strong box of wood\n2. Some yards of good string\n\nThen walk to the office soon."
    writing, _ = write({"section": says, "more": ""}, words=60, kind="product")
    assert writing.sections[0].text == (
        "What you need is this:\n\n- A strong box of wood\n- Some yards of good string\n\nThen walk to the office soon."
    )


def test_without_revision_sentences_come_one_by_one():
    shown = []
    writing, _ = write(words=100, revise=False, on_text=shown.append)
    assert len(shown) > 8
    assert "".join(shown) == writing.text


def test_an_email_has_a_subject_a_greeting_and_an_end():
    says = (
        "Subject: Parcels\n\nDear Sir or Madam,\n\nyour parcel is on its long way now.\n\nBest regards,\n[Your Name]\nThe Team"
    )
    writing, _ = write({"section": says, "more": ""}, kind="email", words=60)
    assert writing.text == ("Subject: Sending parcels\n\nHello,\n\nyour parcel is on its long way now.\n\nKind regards,")


def test_the_brief_and_the_manner_reach_the_model(facts):
    _, scribe = write(tone="dry", audience="sailors", language="Danish", facts=facts, words=60)
    for body in scribe.asked:
        if "Tell these facts" not in body["messages"][-1]["content"]:
            told = json.dumps(body["messages"])
            assert all(word in told for word in ("sending parcels", "dry", "sailors", "Danish"))


def test_headings_of_the_template_are_not_shown_in_other_languages():
    writing, _ = write({"outline": ""}, language="German", words=200)
    assert "##" not in writing.text
    assert writing.within_target


def test_a_killed_run_goes_on_where_it_was(facts, tmp_path):
    undisturbed, whole = write(facts=facts, words=300)
    author = Author()

    def failing(text, number):
        return 500 if number >= 3 else author(text, number)

    with Scribe(failing) as scribe:
        options = {"kind": "article", "about": "sending parcels", "facts": facts, "words": 300, "engine": scribe.url}
        with pytest.raises(NetworkError):
            deepen.write("scribe", **options)
        asked = len(scribe.asked)
        scribe.says = author
        resumed = deepen.write("scribe", **options)
        again = len(scribe.asked) - asked
        assert again < len(whole.asked)
        assert (resumed.text, resumed.tokens, resumed.unsupported) == (
            undisturbed.text, undisturbed.tokens, undisturbed.unsupported
        )  # fmt: skip
        deepen.write("scribe", **options)
        assert len(scribe.asked) - asked - again >= len(whole.asked) - 1, "a finished run leaves nothing behind"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "artikle"}, r"--kind: 'artikle' is not a kind of text; article is near\n  Next: use one of article, report"),
        ({"kind": "zzz"}, r"not a kind of text\n"),
        ({"about": " "}, r"--about: it says nothing"),
        ({"about": "?!"}, r"--about: it says nothing"),
        ({"about": "x" * 5000}, r"at most 4000 characters, this one has 5000"),
        ({"words": 5}, r"--words: 5 words cannot be asked for\n  Next: use a number from 30 to 20000"),
        ({"words": 10**6}, r"--words"),
        ({"tone": ""}, r"--tone: it has from 1 to 200"),
        ({"language": "x" * 300}, r"--language"),
        ({"facts": "nowhere.md"}, r"nowhere.md: there is no such file"),
        ({"outline_file": "nowhere.md"}, r"nowhere.md: there is no such file\n  Next: .*--outline"),
        ({"outline": True, "outline_file": "x.md"}, r"printed or written from, not both"),
        ({"facts": "-", "outline_file": "-"}, r"stdin gives facts or an outline"),
        ({"seed": -1}, r"-1 is not a seed"),
        ({"temperature": -1.0}, r"not a temperature"),
    ],
)
def test_bad_input_is_refused_before_a_model_is_asked(change, message):
    with Scribe(Author()) as scribe:
        with pytest.raises((OptionError, DataError), match=message):
            deepen.write("scribe", **({"kind": "article", "about": "bees", "engine": scribe.url} | change))
        assert scribe.asked == []


def test_bad_files_are_refused(tmp_path, capsys):
    files = {"zero.md": b"a\0b", "empty.md": b"", "latin.md": b"\xff\xfe\xe9", "plain.md": b"no headings here\n"}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with Scribe(Author()) as scribe:
        words = ["write", "scribe", "--engine", scribe.url, "--kind", "article", "--about", "bees"]
        for name in ("zero.md", "empty.md", "latin.md"):
            assert run_program([*words, "--facts", str(tmp_path / name)]) == 2
            told = capsys.readouterr().err
            assert "--facts: there is no document that can be read\n  Next: name .md" in told
        for name in ("zero.md", "latin.md", "plain.md", "empty.md"):
            assert run_program([*words, "--outline-file", str(tmp_path / name)]) == 2
            assert "Next: " in capsys.readouterr().err
        assert scribe.asked == []


def test_the_program_prints_the_text_its_sources_and_a_file(facts, tmp_path, capsys):
    out = tmp_path / "text.md"
    with Scribe(Author(section="A refund is paid within 14 days. Our 77 clerks help you.", more="")) as scribe:
        words = ["write", "scribe", "--engine", scribe.url, "--kind", "email", "--about", "refunds", "--facts", str(facts)]
        assert run_program([*words, "--words", "40", "--out", str(out)]) == 0
        told = capsys.readouterr()
        assert told.out.strip() == out.read_text(encoding="utf-8").strip()
        assert re.search(r"- \[1\] \S*facts.md:7: “A refund is paid within 14 days to the card that was used.”", told.out)
        assert "Not from your facts:\n\n- 77:" in told.out
        assert re.search(r"Words: \d+ of 40 asked for \((not )?within 15 %\)", told.err)
        assert "Section 1 of 1" in told.err
        assert run_program([*words, "--out", str(out)]) == 2
        assert "exists already" in capsys.readouterr().err
        assert run_program([*words, "--out", str(out), "--overwrite", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
    wanted = "kind title outline sections text words target_words within_target citations unsupported tokens seconds engine"
    assert set(wanted.split()) <= found.keys()
    assert {"text", "words", "citations", "heading"} <= found["sections"][0].keys()
    assert found["citations"][0]["number"] == 1


class Continuer:
    """A model without a chat template and with a small context, which goes on in the same way for ever."""

    name, context, has_template, uses_gpu = "continuer", 700, False, None

    def __init__(self):
        self.asked, self.closed = [], 0

    def tokenize(self, text):
        return text.split()

    def stream(self, prompt, **_):
        self.asked.append(prompt)
        try:
            for sentence in prose(4000, 5 * len(self.asked)).split(". "):
                yield Chunk(f"{sentence}. ")
        finally:
            self.closed += 1


def test_a_model_without_a_chat_template_continues_a_text(facts):
    engine, assignment = Continuer(), check_assignment("article", "sending <|im_end|> parcels", words=200)
    with read_facts(find_documents([facts])) as told:
        writing = compose(engine, assignment, facts=told)
    assert writing.within_target
    assert writing.outline_origin == "template"
    assert engine.closed == len(engine.asked), "every request that has enough is ended"
    for prompt in engine.asked:
        assert isinstance(prompt, str)
        assert len(prompt.split()) < engine.context
        assert "<|im_end|>" not in prompt
    assert engine.asked[1].startswith("About: sending")
    assert "Parcels to Peru take 21 days" in engine.asked[1]


def test_who_stops_listening_ends_the_work():
    engine = Continuer()

    def leave(_):
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        compose(engine, check_assignment("story", "a cat"), revise=False, on_text=leave)
    assert engine.closed == len(engine.asked)
