import errno
import importlib
import inspect
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from deepen import cli
from deepen.cli import apps, batch, build, chat, explore, judge, printing, recipes, run_program, train, use
from deepen.errors import CheckpointError, Refuted, StorageError
from deepen.recipe import STAGES
from deepen.units import parse_bytes, parse_count

ESTIMATE = {"gpu", "gpus", "tokens", "sequence_length", "mfu", "price"}  # of `plan`: a function of its own, `estimate_training`
VERBS = {
    "plan": (build.plan, "deepen.plan", "describe"),
    "doctor": (build.doctor, "deepen.doctor", "doctor"),
    "scale": (build.scale, "deepen.scale", "scale"),
    "verify": (build.verify, "deepen.verify", "verify"),
    "merge": (build.merge, "deepen.merge", "merge"),
    "explore": (explore.explore, "deepen.explore", "explore"),
    "pretrain": (train.pretrain, "deepen.train.pretrain", "pretrain"),
    "instruct": (train.instruct, "deepen.train.instruct", "instruct"),
    "align": (train.align, "deepen.train.align", "align"),
    "evaluate": (judge.evaluate, "deepen.evaluate", "evaluate"),
    "generate": (use.generate, "deepen.generate", "generate"),
    "batch": (batch.batch, "deepen.batch", "batch"),
    "chat": (chat.chat, "deepen.chat", "chat"),
    "export": (use.export, "deepen.export", "export"),
    "summarize": (apps.summarize, "deepen.apps.summarize", "summarize"),
    "support": (apps.support, "deepen.apps.support", "support"),
    "write": (apps.write, "deepen.apps.write", "write"),
    "run": (recipes.run, "deepen.pipeline", "run"),
    "check": (recipes.check, "deepen.pipeline", "check"),
}


def deepen(*words: object, **options) -> subprocess.CompletedProcess[str]:
    """Run the program in a process of its own."""
    return subprocess.run([sys.executable, "-m", "deepen", *map(str, words)], capture_output=True, text=True, **options)


@pytest.fixture
def program(monkeypatch, capsys):
    """Run the program here, with a verb that does what the test says."""

    def run(verb, *words: str) -> tuple[int, str, str]:
        app = typer.Typer(pretty_exceptions_enable=False)
        app.callback()(lambda: None)
        app.command("verb")(verb)
        monkeypatch.setattr(cli, "app", app)
        handler = signal.getsignal(signal.SIGTERM)
        try:
            code = run_program(["verb", *words])
        finally:
            signal.signal(signal.SIGTERM, handler)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def raising(error: BaseException):
    def verb() -> None:
        raise error

    return verb


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from deepen.cli import run_program\n"
        "code = run_program(sys.argv[1:])\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pydantic', 'yaml', 'huggingface_hub', 'gguf'} & sys.modules.keys()\n"
        "print(code, sorted(heavy), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True)
    assert done.stderr.split() == ["0", "[]"]
    assert "Usage: deepen" in done.stdout


@pytest.mark.parametrize("verb", [*VERBS, "recipes"])
def test_help_of_every_verb_imports_nothing_heavy(verb: str) -> None:
    code = (
        "import sys\n"
        "from deepen.cli import run_program\n"
        "code = run_program(sys.argv[1:])\n"
        "heavy = {'torch', 'transformers', 'numpy', 'yaml'} & sys.modules.keys()\n"
        "print(code, sorted(heavy), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, verb, "--help"], capture_output=True, text=True, check=True)
    assert done.stderr == "0 []\n"
    assert f"Usage: deepen {verb}" in done.stdout


def arguments(function):
    """The parameters of a verb; the stages of training take those that they share as `**shared`."""
    from deepen.train.options import DEFAULTS

    own = dict(inspect.signature(function).parameters)
    if "shared" not in own:
        return own
    del own["shared"]
    differ = {"learning_rate", "every"}  # each stage has its own default
    kind = inspect.Parameter.KEYWORD_ONLY
    empty = inspect.Parameter.empty
    return own | {
        key: inspect.Parameter(key, kind, default=empty if key in differ else value) for key, value in DEFAULTS.items()
    }


@pytest.mark.parametrize("verb", VERBS)
def test_options_are_the_arguments_of_the_python_function(verb: str) -> None:
    command, module, name = VERBS[verb]
    function = getattr(importlib.import_module(module), name)
    takes = arguments(function)
    plan_options = {"drop", "layers", "repeat", "expand", "plan", "identity_init"} if verb == "plan" else set()
    for option, parameter in inspect.signature(command).parameters.items():
        # summaries of each file are a function of their own, `summarize_each`
        if option in {"json", "context", "file", "show_prompt", "explain", "each"} or (
            verb == "plan" and option in {"output", "overwrite", *ESTIMATE}
        ):
            continue
        assert option in takes or option in plan_options
        if option not in takes or parameter.default is inspect.Parameter.empty:
            continue
        default = takes[option].default
        if option in {"learning_rate", "every"} and default is inspect.Parameter.empty:
            assert parameter.default > 0
        elif default is inspect.Parameter.empty:  # generate's prompt, which may come from stdin
            assert parameter.default is None
        elif isinstance(parameter.default, list):
            assert tuple(parameter.default) == tuple(default)
        elif isinstance(default, str) and isinstance(parameter.default, int):
            assert parameter.default == (parse_bytes if option == "shard_size" else parse_count)(default)
        else:
            assert parameter.default == default


@pytest.mark.parametrize("verb", STAGES)
def test_options_of_a_stage_are_the_arguments_of_the_python_function(verb: str) -> None:
    _, module, name = VERBS[verb]
    takes = set(arguments(getattr(importlib.import_module(module), name)))
    options = set(STAGES[verb].model_fields) - {"stage", "name", "from_"}
    assert options <= takes
    left_out = {"model", "out", "overwrite", "resume", "on_text", "on_step", "on_prompt", "stop", "json_schema"}
    assert takes - options <= left_out


def test_version() -> None:
    done = deepen("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("deepen 0.")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["scal"], "Did you mean 'scale'?"),
        (["plan", "x", "--drp", "8"], "--drop"),
        (["plan"], "Missing argument 'MODEL'"),
        (["plan", "x", "--drop", "many"], "--drop"),
        (["scale", "x", "y", "z", "--drop", "8"], "z"),
        (["pretrain", "a", "b", "--data", "c", "--tokens", "lots"], "'lots' is not a count such as 4096"),
        (["scale", "a", "b", "--shard-size", "5 miles"], "not a size such as 500MB"),
    ],
)
def test_wrong_words_are_explained_with_code_2(words: list[str], message: str) -> None:
    done = deepen(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "Next: see `deepen" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (CheckpointError("cut", where="a.safetensors", next="again"), 2, "error: a.safetensors: cut\n  Next: again\n"),
        (Refuted("differs"), 1, "error: differs\n"),
        (StorageError("the disk failed"), 3, "error: the disk failed\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (MemoryError(), 2, "not enough memory"),
        (OSError(errno.ENOSPC, "No space left on device", "x"), 3, "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "secret.txt"), 2, "error: secret.txt: Permission denied"),
        (ConnectionResetError("peer"), 3, "the connection failed"),
        (OSError(errno.EIO, "Input/output error"), 3, "Input/output error"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA"), 2, "the device has not enough memory"),
        (
            ValueError("odd"),
            3,
            "something went wrong inside deepen (ValueError: odd)\n  Next: run the same command with --debug",
        ),
        (typer.Exit(1), 1, ""),
        (SystemExit(143), 143, ""),
    ],
)
def test_errors_become_exit_codes_and_one_message(program, error: BaseException, code: int, message: str) -> None:
    got, out, err = program(raising(error))
    assert (got, out) == (code, "")
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("error", [ValueError("odd"), CheckpointError("cut")])
def test_debug_shows_the_traceback_and_keeps_the_code(program, error: Exception) -> None:
    code, _, err = program(raising(error), "--debug")
    assert "Traceback (most recent call last)" in err
    assert code == getattr(error, "exit_code", 3)


def test_debug_after_two_dashes_is_a_word(program) -> None:
    def verb(word: str) -> None:
        print(word)

    assert program(verb, "--", "--debug") == (0, "--debug\n", "")


def test_hostile_names_cannot_steer_the_terminal(tmp_path: Path) -> None:
    done = deepen("verify", tmp_path / "\x1b[2J\x9bevil\n")
    assert done.returncode == 2
    assert "\x1b" not in done.stderr
    assert "\\x1b[2J" in done.stderr


def test_a_name_that_is_no_text_is_printed_all_the_same(tmp_path: Path) -> None:
    done = deepen("verify", os.fsdecode(b"\xff\xfe"), cwd=tmp_path)
    assert done.returncode == 2
    assert "\\udcff\\udcfe: no such file" in done.stderr


def test_an_ascii_terminal_gets_escapes_instead_of_a_crash() -> None:
    done = deepen("--help", env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0
    assert "Usage" in done.stdout


def test_a_closed_pipe_is_quiet() -> None:
    process = subprocess.Popen([sys.executable, "-m", "deepen", "doctor"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_told() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-m", "deepen", "doctor"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 3
    assert done.stderr.startswith("error: the disk is full")


@pytest.mark.parametrize(("number", "code", "message"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "")])
def test_signals_clean_up(tmp_path: Path, number: int, code: int, message: str) -> None:
    script = (
        "import signal, time, typer\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # it is ignored where the tests run in the background
        "from deepen import cli\n"
        "from deepen.output import new_folder\n"
        "cli.app = typer.Typer()\n"
        "@cli.app.command()\n"
        "def verb(out: str):\n"
        "    with new_folder(out) as folder:\n"
        "        (folder / 'half').write_text('half')\n"
        "        print('ready', flush=True)\n"
        "        time.sleep(60)\n"
        "cli.main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path / "out"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert err.startswith(message)
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_on_a_terminal_errors_have_colour_and_nothing_else_changes(tmp_path: Path) -> None:
    controller, terminal = os.openpty()
    done = subprocess.Popen([sys.executable, "-m", "deepen", "verify", tmp_path / "[red]x"], stderr=terminal)
    os.close(terminal)
    assert done.wait() == 2
    shown = os.read(controller, 10_000).decode()
    os.close(controller)
    assert "\x1b[1;31merror: \x1b[0m" in shown
    assert "[red]x: no such file" in shown.replace("\r\n", "")


def test_json_is_one_finite_ascii_object(capsys) -> None:
    printing.print_json({"a": float("nan"), "b": (1, Path("x")), "c": "\x1bü", "d": {1: None}})
    out = capsys.readouterr().out
    assert json.loads(out) == {"a": None, "b": [1, "x"], "c": "\x1bü", "d": {"1": None}}
    assert out.isascii()


def test_tables_align_numbers_to_the_right(capsys) -> None:
    printing.print_table([("a", "1"), ("bb\x1b", "10")], ("name", "n"))
    assert capsys.readouterr().out == "name     n\na        1\nbb\\x1b  10\n"


def test_doctor_json() -> None:
    start = time.monotonic()
    done = deepen("doctor", "--json")
    assert done.returncode == 0
    assert {"cpu", "memory", "versions", "abilities"} <= json.loads(done.stdout).keys()
    assert time.monotonic() - start < 20


def test_generate_without_a_prompt_on_a_terminal_is_refused() -> None:
    controller, terminal = os.openpty()
    done = deepen("generate", "nowhere", stdin=terminal)
    os.close(terminal)
    os.close(controller)
    assert done.returncode == 2
    assert "there is no prompt" in done.stderr


def test_more_data_may_follow(tmp_path: Path) -> None:
    done = deepen("evaluate", "nowhere", "--data", "a.txt", "b.txt", "--window", "4")
    assert "nowhere: no such file" in done.stderr
