"""What a chat is made of, without a model: turns and their files, the store, entries, and Markdown in blocks."""

import io
import json
import re
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from deepen.chat.conversation import (
    Turn,
    exchanges,
    from_markdown,
    last_question,
    messages,
    read_file,
    to_file_text,
    to_jsonl,
    to_markdown,
    whole,
    with_system,
)
from deepen.chat.display import Rendered, finished_blocks, make_display, split_blocks
from deepen.chat.entries import COMMANDS, Entry, complete, is_open, parse_entry, read_entries
from deepen.chat.session import Session, Settings
from deepen.chat.store import Store
from deepen.data.chat import read_conversations
from deepen.engine import Chunk
from deepen.errors import DataError, DeepenError, OptionError, OutputError
from deepen.generate import generate
from deepen.output import data_folder

TEXT = some.text(some.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)
LINES = some.lists(some.sampled_from(["## User", "\\## User", "## Assistant (stopped)", "a", "", "```", " ## System"])).map(
    "\n".join
)
TURNS = some.lists(
    some.builds(Turn, some.sampled_from(["system", "user", "assistant"]), TEXT | LINES, some.booleans()), max_size=6
).map(tuple)
VISIBLE = TEXT.filter(str.strip)
STEERING = [chr(code) for code in (*range(9), *range(11, 32), 127, 0x9B, 0x202E)]


@settings(max_examples=500)
@given(TURNS)
def test_markdown_is_read_back_exactly(turns):
    assert from_markdown(to_markdown(turns)) == turns


@given(some.lists(some.tuples(VISIBLE, VISIBLE, some.booleans()), min_size=1, max_size=4), some.none() | VISIBLE)
def test_jsonl_is_what_instruct_reads_and_comes_back(tmp_path_factory, pairs, system):
    turns = with_system(
        tuple(turn for asked, said, stopped in pairs for turn in (Turn("user", asked), Turn("assistant", said, stopped))),
        system,
    )
    path = tmp_path_factory.mktemp("jsonl") / "a.jsonl"
    path.write_text(to_jsonl(turns), encoding="utf-8", newline="")
    (found,) = read_conversations(path)
    assert [(each.role, each.content) for each in found.messages] == [(each.role, each.content) for each in turns]
    assert [each.learned for each in found.messages] == [each.role == "assistant" for each in turns]
    assert read_file(path) == (turns, "")


def test_questions_without_an_answer_are_kept_but_not_sent():
    turns = (
        Turn("system", "s"),
        Turn("user", "1"),
        Turn("user", "2"),
        Turn("assistant", "b"),
        Turn("user", "3"),
        Turn("user", "4"),
    )
    assert [each["content"] for each in messages(turns)] == ["s", "2", "b", "4"]
    assert last_question(turns) == 5
    assert last_question(turns[:1]) is None
    assert exchanges(()) == ()


def test_a_system_turn_is_put_first_replaced_and_taken_away():
    turns = (Turn("user", "1"),)
    assert with_system(turns, "a")[0] == Turn("system", "a")
    assert with_system(with_system(turns, "a"), "b") == (Turn("system", "b"), *turns)
    assert with_system(with_system(turns, "a"), None) == turns


def test_half_characters_are_made_whole():
    assert whole("a\udcffb") == "a\ufffdb"
    assert whole("日本 👩‍👩‍👧") == "日本 👩‍👩‍👧"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"x", "a .md or a .jsonl"),
        ("a.md", b"no headings", "no heading"),
        ("a.md", b"\xff", "UTF-8"),
        ("a.jsonl", b"", "empty"),
        ("a.jsonl", b"{", "not valid JSON"),
        ("a.jsonl", b'{"text": 1}', "no `messages`"),
        ("a.jsonl", b"[1]", "no `messages`"),
        ("a.jsonl", b'{"messages": [{"role": "robot", "content": "x"}]}', "robot"),
        ("a.jsonl", b'{"messages": [{"role": "user", "content": 1}]}', "int"),
        ("a.jsonl", b'{"messages": [{"role": "assistant", "content": "x"}]}', "starts with the assistant"),
        ("none.jsonl", None, "cannot be read"),
    ],
)
def test_files_that_hold_no_conversation_are_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DeepenError, match=message):
        read_file(tmp_path / name)


def test_of_several_conversations_the_first_is_read_and_that_is_said(tmp_path):
    path = tmp_path / "many.jsonl"
    path.write_text("\n" + "".join(to_jsonl((Turn("user", name), Turn("assistant", "x"))) for name in "abc"))
    turns, note = read_file(path)
    assert turns[0].content == "a"
    assert note == "the first of 3 conversations"
    with pytest.raises(OptionError):
        to_file_text(turns, Path("a.pdf"))


# --- the store


def test_the_store_keeps_turns_in_the_users_data_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("DEEPEN_DATA")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    store = Store(data_folder())
    turns = (Turn("user", "Grüße\x00\n"), Turn("assistant", "日本", True, 3, 1.5, 2.25))
    first, second = store.new("one"), store.new("two")
    store.save(first, turns)
    store.save(first, (turns[0], Turn("assistant", "new")), 1)
    assert store.load(first) == (turns[0], Turn("assistant", "new"))
    assert [each.id for each in store.kept()] == [first]  # one that nothing was said in is none
    store.save(second, turns)
    (latest, _) = store.kept()
    assert (latest.id, latest.model, latest.turns, latest.begins) == (second, "two", 2, turns[0].content)
    store.close()
    assert store.file == tmp_path / "data" / "deepen" / "chats.sqlite"
    assert store.file.parent.stat().st_mode & 0o77 == store.file.stat().st_mode & 0o77 == 0
    again = Store(data_folder())
    assert again.load(second) == turns
    assert again.load(99) == ()
    again.close()


def test_a_store_of_something_else_is_refused(tmp_path):
    (tmp_path / "chats.sqlite").write_text("not a database" * 100)
    with pytest.raises(OutputError, match="not a database"):
        Store(tmp_path)
    (tmp_path / "chats.sqlite").unlink()
    with sqlite3.connect(tmp_path / "chats.sqlite") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(OutputError, match="newer deepen"):
        Store(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        Store(tmp_path / "file" / "data")


def test_a_full_store_says_so_and_keeps_what_it_had(tmp_path):
    store = Store(tmp_path)
    number = store.new("m")
    store.save(number, (Turn("user", "kept"),))
    store._database.execute("PRAGMA max_page_count = 8")  # SQLite's own full disk
    with pytest.raises(DeepenError, match="full"):
        store.save(number, (Turn("user", "kept"), Turn("assistant", "x" * 100_000)), 1)
    assert store.load(number) == (Turn("user", "kept"),)
    store.close()


class Echo:
    """An engine that says what it was asked."""

    name, context, has_template = "echo", None, True

    def stream(self, prompt, **options):
        yield Chunk("You said: ")
        yield Chunk(prompt[-1]["content"], "stop", 1, 2)

    def close(self):
        """Nothing to give back."""


def test_what_a_full_disk_did_not_take_is_kept_when_there_is_room_again(tmp_path):
    store, notices = Store(tmp_path), io.StringIO()
    session = Session("m", Echo, Settings(8, 0.0, None, None), store, make_display(io.StringIO()), notices, None)
    session.enter(Entry("one"))
    pages = store._database.execute("PRAGMA page_count").fetchone()[0]
    store._database.execute(f"PRAGMA max_page_count = {pages}")
    session.enter(Entry("x" * 50_000))
    assert "cannot be kept" in notices.getvalue()
    assert len(store.load(1)) == 2
    store._database.execute("PRAGMA max_page_count = 100000")
    session.enter(Entry("three"))
    assert [turn.content for turn in store.load(1)] == ["one", "You said: one", "x" * 50_000, "three", "You said: three"]
    assert store.load(1) == session.turns
    assert len(session.failures) == 1
    store.close()


# --- entries


@pytest.mark.parametrize(
    ("typed", "entry"),
    [
        ("Hello ", Entry("Hello")),
        ("", None),
        ("  \n", None),
        ("/regen", Entry("", "/regen")),
        ("/save  a b.md ", Entry("a b.md", "/save")),
        ("/edit one\ntwo", Entry("one\ntwo", "/edit")),
        ("/bye", Entry("", "/quit")),
        ("/?", Entry("", "/help")),
        (" /help", Entry("/help")),
        ("/etc/passwd is a file", Entry("/etc/passwd is a file")),
        ('"""/help"""', Entry("/help")),
        ('"""\n  a\n\n  b\n"""', Entry("  a\n\n  b")),
        ('""""""', None),
        ('"""', None),
    ],
)
def test_what_is_entered_is_a_message_or_a_command(typed, entry):
    assert parse_entry(typed) == entry


def test_a_block_is_open_until_it_ends():
    assert [is_open(text) for text in ("a", '"""', '"""a', '"""a"""', '""" a\n"""', '""""', "'''")] == [
        False, True, True, False, False, True, False,
    ]  # fmt: skip


@given(
    some.lists(
        some.text(some.characters(exclude_characters='\r\n"\x1c\x1d\x1e\x85\u2028\u2029', exclude_categories=["Cs"])),
        max_size=6,
    )
)
def test_lines_and_blocks_of_a_pipe_give_the_same_entries(lines):
    plain = [entry for line in lines if (entry := parse_entry(line)) and entry.command is None]
    blocks = "".join(f'"""\n{entry.text}\n"""\n' for entry in plain)
    assert list(read_entries(io.StringIO(blocks))) == [Entry(each.text.rstrip()) for each in plain]


def test_a_block_that_never_ends_is_sent_at_the_end():
    assert list(read_entries(io.StringIO('one\n"""two\nthree'))) == [Entry("one"), Entry("two\nthree")]
    with pytest.raises(DataError, match="UTF-8"):
        list(read_entries(io.TextIOWrapper(io.BytesIO(b"\xff\n"), encoding="utf-8")))


def test_completion_knows_commands_and_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.md").touch()
    (tmp_path / "nested").mkdir()
    (tmp_path / ".hidden").touch()
    assert [text for text, _ in complete("/")] == list(COMMANDS)
    assert list(complete("/re")) == [("/regen", 3)]
    assert list(complete("/save n")) == [("nested/", 1), ("notes.md", 1)]
    assert list(complete(f"/load {tmp_path}/no")) == [("notes.md", 2)]
    assert list(complete("/load .")) == [(".hidden", 1)]
    assert list(complete("/load nowhere/")) == []
    assert list(complete("hello /re")) == []


# --- Markdown in blocks


@given(
    some.lists(
        some.sampled_from(["# h", "a *b*", "- x", "  - y", "", "```", "1. z", "> q", "| a |", "|---|", "<b>", "[a]: http://b"])
    )
)
def test_blocks_are_the_text_and_come_the_same_however_it_is_cut(lines):
    text = "\n".join(lines)
    blocks = split_blocks(text)
    assert "".join("".join(blocks).split()) == "".join(text.split())  # nothing is lost
    came, rest = [], ""
    for letter in text:
        finished, rest = finished_blocks(rest + letter)
        came += finished
    assert [each.strip() for each in came + split_blocks(rest)] == [each.strip() for each in blocks]


class Screen(io.StringIO):
    """A terminal of unknown size, as far as its owner asks."""

    def isatty(self):
        return True


@given(some.text(some.sampled_from([*STEERING, *"ab `*#\n&;x0123456789[]()!<>"]), max_size=80))
def test_a_model_cannot_steer_the_terminal(text):
    plain, rendered = io.StringIO(), Screen()
    for stream, display in ((plain, make_display(plain)), (rendered, Rendered(rendered))):
        display.begin()
        for letter in text:
            display.add(letter)
        display.end()
        ours = stream.getvalue()
        for own in ("\x1b[K", "\x1b[J", "\x1b[?2026h", "\x1b[?2026l"):
            ours = ours.replace(own, "")
        ours = re.sub(r"\x1b\[[0-9;]*m|\x1b\[[0-9]+A|\r", "", ours)
        assert not set(ours) & set(STEERING)


def test_numbers_of_characters_do_not_become_steering():
    screen = Screen()
    display = Rendered(screen)
    display.begin()
    display.add("&#x202e;reversed &#27;[2J and &#x9b;")
    display.end()
    assert "\u202e" not in screen.getvalue()
    assert "\x1b[2J" not in screen.getvalue()
    assert "\x9b" not in screen.getvalue()


def test_generate_and_chat_share_what_they_refuse(tmp_path):
    from deepen import chat

    for option in ({"max_new_tokens": 0}, {"temperature": -1.0}, {"seed": -1}, {"trim": "all"}):
        for verb in (lambda **options: generate("none", "Hi", **options), lambda **options: chat("none", **options)):
            with pytest.raises(OptionError):
                verb(**option)
    assert json.loads(to_jsonl((Turn("user", "a"), Turn("assistant", "b", True)))) == {
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "stopped": True}]
    }
