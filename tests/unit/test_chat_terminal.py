"""`deepen chat` as people meet it: at a terminal, a real pseudo-terminal here, and in a pipe; behind it tiny random models."""

import contextlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from deepen.cli import run_program
from deepen.data.chat import read_conversations
from deepen.engine.llamacpp import LlamacppEngine
from pseudoterminal import PseudoTerminal
from tinygguf import write_tiny_gguf

pytest.importorskip("prompt_toolkit")
PROMPT = "a message, or /help"  # stands in an empty prompt
SHORT = ("--greedy", "--max-new-tokens", "12")


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    return write_tiny_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf", context=512)


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """A model whose answers take a while and hardly ever end."""
    return write_tiny_gguf(tmp_path_factory.mktemp("model") / "slow.gguf", context=1 << 15, layers=6, hidden=256)


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPEN_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path / "data"


@pytest.fixture(scope="module")
def expected(gguf):
    """What the engine answers to messages, likeliest tokens only."""
    with closing(LlamacppEngine(gguf)) as engine:

        def answer(*texts, system=None, tokens=12):
            messages = [{"role": "system", "content": system}] if system else []
            messages += [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]
            # a tiny random model has near ties, which may fall otherwise where a prompt goes on from one before it
            for _ in engine.stream("\x7f", max_new_tokens=1, temperature=0.0, seed=None, stop=()):
                pass
            chunks = engine.stream(messages, max_new_tokens=tokens, temperature=0.0, seed=None, stop=())
            return "".join(chunk.text for chunk in chunks)

        yield answer


def command(*words):
    return [sys.executable, "-m", "deepen", "chat", *map(str, words)]


def piped(text, *words, code=0):
    """A chat through a pipe: what came on stdout, and on stderr."""
    done = subprocess.run(command(*words), input=text, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def turns(data, conversation=1):
    """Role, text and mark of each turn, as SQLite has them."""
    with closing(sqlite3.connect(data / "chats.sqlite")) as database:
        rows = database.execute(
            "SELECT role, content, stopped FROM turn WHERE conversation = ? ORDER BY number", (conversation,)
        ).fetchall()
    return [(role, content, bool(stopped)) for role, content, stopped in rows]


def wait_for(condition):
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def children(pid):
    return [int(word) for task in Path(f"/proc/{pid}/task").iterdir() for word in (task / "children").read_text().split()]


# --- a pipe


def test_each_line_and_each_block_of_a_pipe_is_a_turn_and_stdout_has_the_answers_alone(gguf, data, expected):
    out, err = piped('Hi\n\n"""\ntwo\nlines\n"""\n', gguf, *SHORT)
    first = expected("Hi")
    second = expected("Hi", first, "two\nlines")
    assert out == f"{first}\n{second}\n"
    assert err.startswith("Engine: llamacpp")
    assert turns(data) == [
        ("user", "Hi", False),
        ("assistant", first, False),
        ("user", "two\nlines", False),
        ("assistant", second, False),
    ]


@pytest.mark.parametrize("draft", ["model", "auto"])
def test_a_draft_changes_no_answer_and_its_guesses_are_counted(gguf, data, expected, draft):
    out, err = piped("Hi\n/stats\n", gguf, *SHORT, "--draft", gguf if draft == "model" else draft)
    assert out == expected("Hi") + "\n"
    assert ("Draft: " in err) == (draft == "auto")
    counted = re.search(r"^draft +(\d+) of (\d+) guessed tokens accepted$", err, re.M)
    if draft == "model":  # the model itself always guesses right
        assert counted is not None
        assert int(counted[1]) == int(counted[2]) > 4


def test_a_pipe_has_commands_too(gguf, data, expected, tmp_path):
    script = [
        "/system Be brief", "Hello", "/regen", "/edit Bye", "/undo", " /help me", "/stats", "/chats", "/show",
        f"/save {tmp_path}/a.md", f"/save {tmp_path}/a.jsonl", f"/save {tmp_path}/a.jsonl",
        "/help", "/clear", "Hi", "/quit", "no",
    ]  # fmt: skip
    out, err = piped("\n".join(script), gguf, *SHORT)
    hello, bye = expected("Hello", system="Be brief"), expected("Bye", system="Be brief")
    helped, hi = expected("/help me", system="Be brief"), expected("Hi", system="Be brief")
    assert out.splitlines()[:4] == [hello, hello, bye, helped]
    assert out.splitlines()[-1] == hi
    for said in ("System message: Be brief", "Taken back: Bye", "generated    12 tokens", "/regen   answer", "A new chat."):
        assert said in err
    assert re.search(r"energy +(not measured: |[0-9])", err)
    assert re.search(r"^ +1  20\d\d-.* 3 turns  /help me$", err, re.MULTILINE)
    assert [text for _, text, _ in turns(data, 1)] == ["Be brief", "/help me", helped]
    assert [text for _, text, _ in turns(data, 2)] == ["Be brief", "Hi", hi]
    (saved,) = read_conversations(tmp_path / "a.jsonl")  # as `deepen instruct --data` does
    assert [message.content for message in saved.messages] == ["Be brief", "/help me", helped]
    assert "## Assistant\n\n" + helped in (tmp_path / "a.md").read_text()


def test_what_was_saved_is_loaded_and_nothing_is_overwritten_unasked(gguf, data, expected, tmp_path):
    piped(f"Hello\n/save {tmp_path}/a.md\n/save {tmp_path}/a.jsonl\n", gguf, *SHORT)
    hello = expected("Hello")
    for number, name in enumerate(("a.md", "a.jsonl", "1"), start=2):
        out, _ = piped(f"/load {name if name == '1' else tmp_path / name}\nMore\n", gguf, *SHORT)
        assert out == expected("Hello", hello, "More") + "\n"
        assert [text for _, text, _ in turns(data, min(number, 3) if name != "1" else 1)][:2] == ["Hello", hello]
    before = (tmp_path / "a.md").read_text()
    _, err = piped(f"Other\n/save {tmp_path}/a.md\n", gguf, *SHORT, code=2)
    assert "exists already" in err
    assert (tmp_path / "a.md").read_text() == before
    piped(f"Other\n/save {tmp_path}/a.md --overwrite\n", gguf, *SHORT)
    assert "Other" in (tmp_path / "a.md").read_text()


def test_json_is_one_object_with_the_whole_conversation(gguf, data, expected):
    out, err = piped("Hi\n", gguf, *SHORT, "--json")
    found = json.loads(out)
    assert found["messages"] == [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": expected("Hi")}]
    assert (found["conversation"], found["engine"], found["completion_tokens"]) == (1, "llamacpp", 12)
    assert found["failures"] == []
    assert expected("Hi") in err


def test_a_chat_goes_on_where_it_ended(gguf, data, expected):
    piped("one\n", gguf, *SHORT)
    piped("two\n", gguf, *SHORT)
    out, err = piped("more\n", gguf, *SHORT, "--resume")
    assert out == expected("two", expected("two"), "more") + "\n"
    assert "Chat 2 goes on" in err
    out, _ = piped("more\n", gguf, *SHORT, "--resume", "1")
    assert out == expected("one", expected("one"), "more") + "\n"
    _, err = piped("", gguf, "--resume", "9", code=2)
    assert "no chat 9" in err
    assert "1, 2" in err


def test_a_conversation_that_is_too_long_is_refused_with_both_numbers_or_trimmed_aloud(gguf, data, expected):
    lines = [letter * 100 for letter in "abcdefg"]
    script = "\n".join(lines) + "\n"
    out, err = piped(script, gguf, *SHORT, code=2)
    assert re.search(r"the prompt has \d{3} tokens, but the context holds 512", err)
    assert "--trim oldest" in err
    assert len(out.splitlines()) < len(lines)

    out, err = piped(script, gguf, *SHORT, "--trim", "oldest", "--system", "Stay")
    answers = out.splitlines()
    assert len(answers) == len(lines)
    dropped = [int(number) for number in re.findall(r"the (\d+) oldest turns are left out", err)]
    assert dropped[0] == 2
    assert dropped == sorted(dropped)
    kept = [each for pair in zip(lines, answers, strict=True) for each in pair][dropped[-1] : -1]
    assert answers[-1] == expected(*kept, system="Stay")
    assert len(turns(data, 2)) == 1 + 2 * len(lines)  # on disk there is all of it

    _, err = piped("x" * 600 + "\nHi\n", gguf, *SHORT, "--trim", "oldest", code=2)
    assert "but the context holds 512" in err  # a message is never cut


def test_an_engine_that_dies_is_started_again_and_the_chat_goes_on(slow, data):
    words = command(slow, "--greedy", "--max-new-tokens", "1500")
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as chat:
        chat.stdin.write("Go\n")
        chat.stdin.flush()
        assert chat.stdout.read(20).strip()  # the answer comes
        (engine,) = children(chat.pid)
        os.kill(engine, signal.SIGKILL)
        chat.stdin.write("/stats\n/edit Again\n/quit\n")
        chat.stdin.flush()
        out, err = chat.stdout.read(), chat.stderr.read()
    assert chat.returncode == 3  # a turn failed, and a script should know
    assert "error: " in err
    assert "was killed" in err
    assert err.count("The engine is started again") == 1
    assert len(out.splitlines()) == 2  # what came before the death, and the answer after it
    assert [(role, stopped) for role, _, stopped in turns(data)] == [("user", False), ("assistant", False)]
    assert turns(data)[0][1] == "Again"


def test_an_engine_that_dies_between_turns_is_started_again_too(gguf, data, expected):
    words = command(gguf, *SHORT, "--trim", "oldest")
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as chat:
        chat.stdin.write("one\n")
        chat.stdin.flush()
        assert chat.stdout.readline() == expected("one") + "\n"
        (engine,) = children(chat.pid)
        os.kill(engine, signal.SIGKILL)
        chat.stdin.write("/regen\ntwo\n")  # the first finds it dead, and loses nothing
        chat.stdin.flush()
        chat.stdin.close()
        assert chat.stdout.read() == expected("one", expected("one"), "two") + "\n"
    assert chat.returncode == 3
    assert [text for _, text, _ in turns(data)][:3] == ["one", expected("one"), "two"]


def test_an_engine_that_dies_twice_in_a_row_ends_the_chat(slow, data):
    words = command(slow, "--greedy", "--max-new-tokens", "9000")
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as chat:
        chat.stdin.write("Go\n/regen\nMore\n")
        chat.stdin.flush()
        engines = set()
        for _ in range(2):
            wait_for(lambda: set(children(chat.pid)) - engines and len(turns(data)) == 2)
            (engine,) = set(children(chat.pid)) - engines
            engines.add(engine)
            os.kill(engine, signal.SIGKILL)
            wait_for(lambda: engine not in children(chat.pid) or chat.poll() is not None)  # noqa: B023
            wait_for(lambda: chat.poll() is not None or len(turns(data)) == 1 or children(chat.pid))
        assert chat.wait(60) == 3
    assert [role for role, _, _ in turns(data)] == ["user", "assistant"]


def test_a_server_behind_a_url_chats_too(gguf, data, expected):
    words = [sys.executable, "-m", "deepen", "serve", str(gguf), "--port", "0", "--json", "--context", "512"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        lines = iter(server.stdout.readline, "}\n")
        address = json.loads("".join(lines) + "}")
        out, err = piped("Hi\n/stats\n", "tiny", "--engine", address["url"], *SHORT)
        server.terminate()
    assert out == expected("Hi") + "\n"
    assert "not measured: the engine is elsewhere" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGPIPE])
def test_an_interrupt_in_a_pipe_keeps_what_came(slow, data, number):
    words = command(slow, "--greedy", "--max-new-tokens", "9000")
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as chat:
        chat.stdin.write("Go\n")
        chat.stdin.flush()
        begun = chat.stdout.read(20)
        out = ""
        if number == signal.SIGPIPE:  # whoever read the answer has gone
            chat.stdout.close()
        else:
            chat.send_signal(number)
            out = chat.stdout.read()
    assert chat.returncode == 128 + number
    (asked, (role, text, stopped)) = turns(data)
    assert asked == ("user", "Go", False)
    assert (role, stopped) == ("assistant", True)
    assert text.startswith((begun + out).rstrip("\n"))


def test_bad_input_is_explained(gguf, data, tmp_path, capsys):
    _, err = piped("/nope\n/load\n/load none.md\n/load 7\n/save a.txt\n/regen now\n/regen\n/edit\n", gguf, code=2)
    for said in (
        "/nope is no command",
        "needs a file",
        "none.md",
        "no chat 7",
        "nothing to save",
        "takes nothing",
        "no message",
    ):
        assert said in err
    done = subprocess.run(command(gguf, *SHORT), input=b"\xff\xfe\n", capture_output=True)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"not a text in UTF-8" in done.stderr
    done = subprocess.run(command(gguf), stdin=None, capture_output=True, preexec_fn=lambda: os.close(0))
    assert done.returncode == 2
    assert b"nothing to read" in done.stderr
    for words in (["--trim", "newest"], ["--temperature", "-1"], ["--trim", "oldest", "--engine", "http://x"], ["--resume"]):
        assert run_program(["chat", str(gguf), *words]) == 2
    assert "--resume" in capsys.readouterr().err


def test_help_needs_no_torch_and_no_prompt_toolkit():
    code = (
        "import sys\nfrom deepen.cli import run_program\nrun_program(['chat', '--help'])\n"
        "print({'torch', 'transformers', 'numpy', 'prompt_toolkit'} & sys.modules.keys(), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "set()\n"
    assert "--resume" in done.stdout


# --- a terminal


@contextlib.contextmanager
def terminal(*words, **options):
    with PseudoTerminal(command(*words), **options) as opened:
        opened.expect(PROMPT)
        yield opened


def test_a_conversation_at_a_terminal(gguf, data, expected, tmp_path):
    with terminal(gguf, *SHORT) as chat:
        chat.send("Hello\r")
        chat.expect(expected("Hello"))
        chat.expect(PROMPT)
        chat.send("/regen\r")
        chat.expect(expected("Hello"))
        chat.expect(PROMPT)
        chat.send("/system Be brief\r")
        chat.expect("System message: Be brief")
        chat.send(f"/save {tmp_path}/a.jsonl\r")
        chat.expect("Saved as ")
        chat.expect(PROMPT)
        chat.send("/stats\r")
        chat.expect("generated    12 tokens")
        chat.expect("energy")
        chat.expect(PROMPT)
        chat.send("/undo\r")
        chat.expect("Taken back: Hello")
        chat.expect(PROMPT)
        chat.send(f"/load {tmp_path}/a.jsonl\r")
        chat.expect("Loaded 3 turns")
        chat.expect(PROMPT)
        chat.send("/help\r")
        chat.expect("/quit    leave")
        chat.expect(PROMPT)
        chat.send("\x04")  # Ctrl-D
        assert chat.wait() == 0
    assert json.loads((tmp_path / "a.jsonl").read_text())["messages"][1] == {"role": "user", "content": "Hello"}


def test_the_keys_of_the_prompt(gguf, data, expected):
    with terminal(gguf, *SHORT) as chat:
        chat.send("one\x1b\rtwo\\\rthree\r")  # Alt-Enter, and a backslash before Enter
        chat.expect(PROMPT)
        chat.send('"""four\rfive"""\r')
        chat.expect(PROMPT)
        chat.send("\x1b[A\x1b[A\x1b[A\r")  # up through the two lines of the last one, to the one before
        chat.expect(PROMPT)
        chat.send("/edit\r")
        chat.expect("edit> ")
        chat.send(" six\r")
        chat.expect(PROMPT)
        chat.send("/sta\t\r")  # completed
        chat.expect("last prompt")
        chat.send("/quit\n")  # a terminal whose Enter is a line feed
        assert chat.wait() == 0
    said = [text for role, text, _ in turns(data) if role == "user"]
    assert said == ["one\ntwo\nthree", "four\nfive", "one\ntwo\nthree six"]


def test_what_is_typed_before_it_is_asked_for_is_not_lost(gguf, data, expected):
    with PseudoTerminal(command(gguf, *SHORT)) as chat:
        chat.send("one\rtwo\r" + "z" * 100 + "\r/quit\r")
        assert chat.wait() == 0
    assert [text for role, text, _ in turns(data) if role == "user"] == ["one", "two", "z" * 100]
    assert turns(data)[1][1] == expected("one")


def test_file_names_are_completed_after_save_and_load(gguf, data, tmp_path):
    (tmp_path / "conversation-one.jsonl").write_text('{"messages": [{"role": "user", "content": "Grüße"}]}\n')
    with terminal(gguf, *SHORT) as chat:
        chat.send(f"/load {tmp_path}/conv\t\r")
        chat.expect("Loaded 1 turn")
        chat.expect(PROMPT)
        chat.send("/regen\r")
        chat.expect(PROMPT)
    assert turns(data)[0] == ("user", "Grüße", False)


def test_ctrl_c_stops_an_answer_and_keeps_the_chat_and_twice_at_the_prompt_leaves(slow, data):
    with terminal(slow, "--greedy", "--max-new-tokens", "9000") as chat:
        chat.send("Go\r")
        chat.expect(re.compile(r"[a-zA-Z]{40}"))
        chat.send("\x03")
        chat.expect("(stopped)", seconds=10)
        chat.expect(PROMPT)
        ((_, _, _), (_, text, stopped)) = turns(data)
        assert stopped
        assert len(text) >= 40
        chat.send("/undo\r")
        chat.expect("Taken back")
        chat.expect(PROMPT)
        chat.send("Once more\r")
        chat.expect(re.compile(r"[a-zA-Z]{40}"))
        chat.send("\x03\x03")  # in haste: it does not leave
        chat.expect("(stopped)", seconds=10)
        chat.expect(PROMPT)
        chat.send("half a mess")
        chat.expect("half a mess")
        chat.send("\x03")
        chat.expect("Ctrl-C again leaves")
        chat.expect(PROMPT)
        chat.send("\x03")
        assert chat.wait() == 0
    assert [(role, stopped) for role, _, stopped in turns(data)] == [("user", False), ("assistant", True)]


def test_nothing_is_lost_when_the_process_is_killed_and_the_chat_is_resumed(slow, data):
    with terminal(slow, "--greedy", "--max-new-tokens", "20") as chat:
        chat.send("First\r")
        chat.expect(PROMPT)
    with terminal(slow, "--greedy", "--max-new-tokens", "9000", "--resume") as chat:
        chat.send("Second\r")
        wait_for(lambda: len(turns(data)) == 4)  # what comes of an answer is kept while it comes
        chat.kill()
    kept = turns(data)
    assert [(role, stopped) for role, _, stopped in kept] == [
        ("user", False), ("assistant", False), ("user", False), ("assistant", True),
    ]  # fmt: skip
    with PseudoTerminal(command(slow, *SHORT, "--resume")) as chat:
        chat.expect("Chat 1 goes on after 4 turns")
        chat.expect(">>> Second")
        chat.expect("(stopped)")
        chat.expect(PROMPT)
        chat.send("/regen\r")
        chat.expect(PROMPT)
        chat.send("\x04")
        assert chat.wait() == 0
    assert turns(data)[:3] == kept[:3]
    assert turns(data)[3][1] == kept[3][1][:12]
    assert not turns(data)[3][2]


def test_a_paste_of_20000_characters_is_one_message(data, tmp_path):
    long = write_tiny_gguf(tmp_path / "long.gguf", context=1 << 16)
    text = "\n".join("th" * 30 + f" {number:4} Zeile ünd 日本 👩‍👩‍👧\tend" for number in range(300))[:20_000]
    with terminal(long, *SHORT, "--context", 1 << 16) as chat:
        chat.send(f"\x1b[200~{text}\x1b[201~")
        chat.send("\r")
        chat.expect(PROMPT)
        chat.send("/clear\r")
        chat.expect(PROMPT)
        chat.send("th" * 10_000 + "\r")  # and one that is typed, or pasted where a terminal marks none
        chat.expect(PROMPT)
    assert len(text) == 20_000
    assert turns(data, 1)[0] == ("user", text, False)
    assert turns(data, 2)[0] == ("user", "th" * 10_000, False)
    assert [len(turns(data, number)) for number in (1, 2)] == [2, 2]


def test_the_window_is_resized_at_the_prompt_and_in_an_answer(slow, data):
    with terminal(slow, "--greedy", "--max-new-tokens", "1500", rows=24, columns=80) as chat:
        chat.send("A message")
        chat.resize(10, 40)
        chat.send(" that goes on\r")
        chat.expect(re.compile(r"[a-zA-Z]{30}"))
        chat.resize(8, 20)
        time.sleep(0.3)
        chat.resize(50, 132)
        chat.expect(PROMPT)
        chat.send("\x04")
        assert chat.wait() == 0
    ((_, question, _), (_, answer, stopped)) = turns(data)
    assert question == "A message that goes on"
    assert not stopped
    # what stays on the screen at the end is the whole answer, in the width that the window had then
    tail = chat.shown.replace("\r", "").replace("\n", "")
    assert re.sub(r"\s", "", answer)[-400:] in re.sub(r"\s", "", tail)


def test_a_stream_that_is_no_terminal_gets_plain_text_though_there_is_a_keyboard(gguf, data, expected, tmp_path):
    with PseudoTerminal(["bash", "-c", f"{' '.join(command(gguf, *SHORT))} > {tmp_path}/out"]) as chat:
        chat.expect(PROMPT)
        chat.send("Hi\r")
        chat.expect(PROMPT)
        chat.send("\x04")
        assert chat.wait() == 0
    assert (tmp_path / "out").read_text() == expected("Hi") + "\n"


def test_the_terminal_is_left_as_it_was(gguf, data):
    before, after = data.parent / "before", data.parent / "after"
    script = f"stty -a > {before}; {' '.join(command(gguf, *SHORT))}; stty -a > {after}; echo ended"
    with PseudoTerminal(["bash", "-c", script]) as chat:
        chat.expect(PROMPT)
        chat.send("Hi\r")
        chat.expect(PROMPT)
        chat.send("\x03")
        chat.expect("again leaves")
        chat.expect(PROMPT)
        chat.send("\x03")
        chat.expect("ended")
    assert before.read_text() == after.read_text()
    assert chat.output.count("\x1b[?2004h") >= 1
    assert chat.output.rindex("\x1b[?2004l") > chat.output.rindex("\x1b[?2004h")
