"""The tutor as a program: pipes, keyboards, kills, engines that fail, progress, data that is forgotten, bad input."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import deepen
from classroom import MODEL, PAGES, learner_file, lesson, opened
from deepen.apps.tutor import Lesson, forget_learner, learner_progress
from deepen.cli import run_program
from deepen.engine.openai import OpenAIEngine
from deepen.errors import DataError, NetworkError, OptionError
from pseudoterminal import PseudoTerminal
from scribe import Scribe

DATA = Path(__file__).parents[3] / "shared" / "data" / "docs"


@pytest.fixture(autouse=True)
def own_data(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPEN_DATA", str(tmp_path / "data"))
    for name in ("DEEPEN_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def docs(tmp_path):
    folder = tmp_path / "docs"
    folder.mkdir()
    for name, text in PAGES.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


# --- when the engine fails


def test_an_endpoint_that_is_down_in_the_middle_stops_nothing_that_code_can_do(capsys):
    with Scribe(lambda *_: "") as scribe, lesson(scribe.url, "fractions", level="beginner", seed=1) as taught:
        taught.start()
        scribe.says = lambda *_: 503
        (turn,) = taught.answer("0")
        assert turn.trouble
        assert opened()["guide"] in turn.text
        scribe.says = lambda *_: ""
        assert taught.answer("0")[0].trouble == ""


def test_where_the_engine_is_needed_the_lesson_continues_later(capsys):
    with Scribe(lambda *_: '{"question": "What is the red planet called?", "answer": "Mars"}') as scribe:
        with lesson(scribe.url, "astronomy", level="beginner") as taught:
            taught.start()
            scribe.says = lambda *_: 503
            with pytest.raises(NetworkError):
                taught.answer("Mars")
        words = ["tutor", MODEL, "--topic", "astronomy", "--level", "beginner", "--engine", scribe.url]
        done = program(words, "")
        assert done.returncode == 3
        assert "Next:" in done.stderr
        scribe.says = lambda *_: '{"question": "Which planet has rings of ice?", "answer": "Saturn"}'
        done = program(words, "Saturn\n")
        assert "Which planet has rings" in done.stdout
        (topic,) = learner_progress().topics
        assert topic.solved == 2


def program(words, entries, **options):
    return subprocess.run(
        [sys.executable, "-m", "deepen", *words], input=entries, capture_output=True, text=True, check=False, **options
    )


def test_a_pipe_whose_endpoint_fails_ends_with_its_exit_code():
    with Scribe(lambda *_: 500) as scribe:
        done = program(["tutor", MODEL, "--topic", "sums", "--level", "beginner", "--engine", scribe.url], "0\n0\n")
    assert done.returncode == 3
    assert "Hint:" in done.stdout
    assert "goes on without the model" in done.stderr


# --- the program


def test_a_lesson_through_a_pipe_and_as_json(docs):
    with Scribe(lambda *_: "") as scribe:
        words = ["tutor", MODEL, "--topic", "adding", "--level", "beginner", "--engine", scribe.url, "--seed", "3"]
        done = program([*words, "--exercises", "1"], "/help\n0\n0\n0\n0\n7\n")
        assert done.returncode == 0
        for text in ("/hint", "Think about it:", "Hint:", "First step:", "Worked answer:", "That was the lesson"):
            assert text in done.stdout
        assert done.stdout.count("What is") == 2, "one example and one exercise"
        found = json.loads(program([*words, "--json"], "1/0\n/quit\n").stdout)
        assert [event["entry"] for event in found["events"]] == [None, "1/0", "/quit"]
        assert found["events"][1]["turns"][0]["rung"] == "question"
        assert (found["learner"], found["topic"], found["level"], found["engine"]) == ("me", "adding", "beginner", "openai")


def test_progress_is_shown_and_forgotten(capsys):
    with Scribe(lambda *_: "") as scribe:
        for learner in ("Ann", "Bob"):
            with lesson(scribe.url, "division", level="beginner", learner=learner) as taught:
                taught.start()
                taught.answer("my secret answer")
    assert run_program(["tutor", "--progress", "--learner", "Ann", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["learner"], found["topics"][0]["topic"], found["topics"][0]["is_open"]) == ("Ann", "division", True)
    assert run_program(["tutor", "--progress", "--learner", "Ann"]) == 0
    assert "division: level beginner" in capsys.readouterr().out
    assert run_program(["tutor", "--forget", "Ann"]) == 0
    assert capsys.readouterr().out == "Forgotten: Ann, with 1 topics, 1 exercises and 1 answers\n"
    for words in (["--forget", "Ann"], ["--progress", "--learner", "Ann"]):
        assert run_program(["tutor", *words]) == 2
        assert "there is no learner 'Ann'; known here: Bob" in capsys.readouterr().err
    assert b"my secret" in learner_file().read_bytes(), "Bob's"
    assert forget_learner("Bob").attempts == 1
    assert b"my secret" not in learner_file().read_bytes()
    assert learner_file().stat().st_mode & 0o77 == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--topic", " "], "the topic is empty"),
        (["--topic", "x" * 300], "at most 200"),
        (["--topic", "sums", "--level", "begginer"], "did you mean beginner"),
        (["--topic", "sums", "--level", "zzz"], "use beginner, intermediate, advanced"),
        (["--topic", "sums", "--exercises", "0"], "use 1 or more"),
        (["--topic", "sums", "--learner", " "], "not a learner's name"),
        (["--topic", "sums", "--max-new-tokens", "0"], "cannot be generated"),
        (["--topic", "sums", "--material", "-"], "stdin"),
        (["--topic", "sums", "--material", "/nowhere"], "no such file"),
        ([], "a lesson needs --topic"),
    ],
)
def test_bad_options_are_refused_before_a_model_is_loaded(words, told, capsys):
    assert run_program(["tutor", "no-such-model", *words]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "Next:" in error


def test_bad_material_is_refused(docs, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    with Scribe(lambda *_: "") as scribe:
        words = ["tutor", MODEL, "--engine", scribe.url, "--topic", "knitting", "--material"]
        assert run_program([*words, str(tmp_path / "empty")]) == 2
        assert "--material: there is no document that can be read" in capsys.readouterr().err
        assert run_program([*words, str(docs)]) == 2
        assert "nothing in the material is about 'knitting'" in capsys.readouterr().err
    assert run_program(["tutor"]) == 2
    assert "a lesson needs MODEL" in capsys.readouterr().err
    with Scribe(lambda *_: "") as scribe, lesson(scribe.url, level="beginner") as taught:
        taught.start()
        with pytest.raises(DataError, match="at most 2000"):
            taught.answer("x" * 2001)
        with pytest.raises(OptionError, match="no level"):
            Lesson(OpenAIEngine(scribe.url, MODEL), taught._store, "sums", level="expert")


def test_a_lesson_at_a_keyboard():
    with Scribe(lambda *_: "") as scribe:
        words = [
            sys.executable,
            "-m",
            "deepen",
            "tutor",
            MODEL,
            "--topic",
            "sums",
            "--level",
            "beginner",
            "--engine",
            scribe.url,
        ]
        with PseudoTerminal(words) as terminal:
            terminal.expect("/help lists the commands")
            terminal.expect("> ")
            terminal.send("0\r")
            terminal.expect("Not yet. Think about it")
            terminal.expect("> ")
            terminal.send("/quit\r")
            terminal.expect("Until next time")
            assert terminal.wait() == 0


@pytest.mark.slow
def test_smollm2_teaches_from_real_documents(smollm2):
    if not DATA.is_dir():
        pytest.skip("needs ../shared/data")
    found = deepen.tutor(
        smollm2,
        topic="certificates",
        material=DATA / "letsencrypt",
        answers=["no idea", "zebra", "/hint", "/quit"],
        max_new_tokens=60,
    )
    kinds = [[turn.kind for turn in event.turns] for event in found.events]
    assert kinds[0] == ["diagnosis"]
    assert kinds[1][0] == "level"
    assert kinds[1][-1] == "exercise"
    assert kinds[2:] == [["hint"], ["hint"], ["end"]]
    assert found.level == "beginner"
    assert found.events[1].turns[-1].place.startswith("docs/")
