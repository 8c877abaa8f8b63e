"""The program `deepen`: options and printing. The verbs are Python functions; errors become exit codes here, in one place."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

import typer

from deepen.cli import apps, build, explore, judge, recipes, synthesize, train, use
from deepen.errors import DeepenError, printable

_INTERRUPTED = 128 + signal.SIGINT
_TERMINATED = 128 + signal.SIGTERM
_STOPPED = {_INTERRUPTED, _TERMINATED}
_PIPE_CLOSED = 128 + signal.SIGPIPE

app = typer.Typer(
    name="deepen",
    help="Make language models deeper, heal them, judge them and run them.",
    epilog="Exit codes: 0 done, 1 the answer is no, 2 change something, 3 the machine failed, 130 interrupted.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)
for _group in (build, explore, train, synthesize, judge, use, apps, recipes):
    _group.register(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        from deepen import __version__

        print(f"deepen {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
    ),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error; goes before or after the verb."),
) -> None:
    pass


def main() -> NoReturn:
    """Run the program with the words of the command line and leave with its exit code."""
    sys.exit(run_program(sys.argv[1:]))


def run_program(words: Sequence[str]) -> int:
    """Run one command and return its exit code; messages go to stderr.

    Args:
        words: the command line without the program's name.
    """
    # a file name may hold bytes that are no text, and a terminal may not know every character
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, _terminate)
    end = words.index("--") if "--" in words else len(words)
    debug = "--debug" in words[:end]
    words = [word for place, word in enumerate(words) if word != "--debug" or place > end]
    try:
        code = app(args=words or ["--help"], prog_name="deepen", standalone_mode=False)
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        return _explain(error)
    except SystemExit as leave:
        if leave.code == _TERMINATED:
            return _say("terminated\n  Next: run the same command again", _TERMINATED)
        return _explain(leave.__context__) if isinstance(leave.__context__, BrokenPipeError) else _code(leave.code)
    if code == _INTERRUPTED:
        return _explain(KeyboardInterrupt())
    return _code(code)


def _code(code: object) -> int:
    return code if isinstance(code, int) else 0


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    # as an exception, so that half-made outputs are cleaned up on the way out
    raise SystemExit(_TERMINATED)


def _explain(error: BaseException) -> int:
    """Print what an error means to the user, and return its exit code."""
    match error:
        case DeepenError():
            return _say(str(error), error.exit_code)
        case typer.TyperException():
            context = getattr(error, "ctx", None)
            path = context.command_path if context else "deepen"
            return _say(f"{error.format_message()}\n  Next: see `{path} --help`", 2)
        case KeyboardInterrupt():
            return _say("interrupted\n  Next: run the same command again", _INTERRUPTED)
        case BrokenPipeError():
            # whoever read the output has gone; the interpreter must not complain when it flushes at the end
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return _PIPE_CLOSED
        case ModuleNotFoundError(name=str() as name) if name.partition(".")[0] != "deepen":
            return _say(f"this needs the package {name}\n  Next: pip install 'deepen[all]'; see `deepen doctor`", 2)
        case OSError(errno=errno.ENOSPC | errno.EDQUOT | errno.EFBIG):
            return _say("the disk is full\n  Next: free some space and run again", 3)
        case ConnectionError() | TimeoutError():
            return _say(f"the connection failed ({error})\n  Next: check the network and run again", 3)
        case OSError(filename=str() as name, strerror=str() as reason):
            return _say(f"{name}: {reason}\n  Next: check the path and its permissions", 2)
        case OSError(errno=int(), strerror=str() as reason):
            return _say(f"{reason}\n  Next: check the machine and run again", 3)
        case MemoryError():
            return _say(f"there is not enough memory\n  Next: {_SMALLER}", 2)
        case _ if type(error).__name__ == "OutOfMemoryError":  # torch's, which must not be imported for this
            return _say(f"the device has not enough memory\n  Next: {_SMALLER}", 2)
    return _say(
        f"something went wrong inside deepen ({type(error).__name__}: {error})\n"
        "  Next: run the same command with --debug and report what it prints together with `deepen doctor`",
        3,
    )


_SMALLER = "use a smaller model, a smaller batch or shorter sequences"


def _say(message: str, code: int) -> int:
    text = printable(message)
    with contextlib.suppress(OSError):
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.text import Text

            head = "" if code in _STOPPED else "error: "
            Console(stderr=True).print(Text.assemble((head, "bold red"), text), soft_wrap=True)
        else:
            print(text if code in _STOPPED else f"error: {text}", file=sys.stderr)
    return code
