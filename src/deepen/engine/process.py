"""A part of deepen that runs in a process of its own: started, asked, and ended with this one, however this one ends.

llama.cpp ends its process on a failed assertion and gives memory back only there, so it never runs in the user's process.
Parent and child speak in pickles over the child's stdin and stdout; the child's stdin stays open, and its end means that the
parent is gone (also by SIGKILL). Everything the child prints goes to a nameless log file.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import select
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from deepen.errors import DeepenError, MachineError, MissingDependencyError

_LOG_LINES = 8
_LOG_BYTES = 4096
_SECONDS_TO_END = 5.0


@dataclass(frozen=True)
class Child:
    """A running child process; `start` makes it and `close` ends it."""

    process: subprocess.Popen[bytes]
    log: IO[bytes]
    subject: Path  # the file that it works on, named in errors

    def receive(self) -> object:
        """The child's next answer.

        Raises:
            DeepenError: the error that the child answered with, or MachineError if it died.
        """
        assert self.process.stdout is not None
        try:
            answer = pickle.load(self.process.stdout)  # noqa: S301  written by our own code in `answers`
        except (EOFError, pickle.UnpicklingError):
            raise self.died() from None
        if isinstance(answer, DeepenError):
            raise answer
        return cast("object", answer)

    def died(self) -> MachineError:
        """The error that tells how the child ended, with the last lines of its log."""
        try:
            code = self.process.wait(_SECONDS_TO_END)  # its pipe or connection closes a moment before it is gone
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        if code == -signal.SIGKILL:
            how, advice = "was killed", "free some memory, or use a smaller model or context; the system may have run out"
        elif code < 0:
            how, advice = f"crashed ({signal.Signals(-code).name})", "try a newer xllamacpp, or --engine transformers"
        else:
            how, advice = f"ended with exit code {code}", "try a newer xllamacpp, or --engine transformers"
        lines = log_tail(self.log.fileno())
        return MachineError(
            f"llama.cpp {how}" + (f"; its last words were:\n{lines}" if lines else ""), where=self.subject, next=advice
        )

    def close(self) -> None:
        """End the child and wait until it is gone."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(BrokenPipeError):  # a request that a dead child never read
            self.process.stdin.close()
        self.process.stdout.close()
        self.log.close()


def start(module: str, subject: Path, request: object) -> Child:
    """Run `main()` of a module in a new process and hand it a request, which it reads with `request_from_parent`.

    The child has this process's import path and its own session, so that Ctrl-C reaches only the parent.
    """
    code = f"import sys; sys.path[:] = {sys.path!r}; from {module} import main; main()"
    log = tempfile.TemporaryFile()  # noqa: SIM115  closed by Child.close
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        start_new_session=True,
    )
    child = Child(process, log, subject)
    assert process.stdin is not None
    try:
        process.stdin.write(pickle.dumps(request))
        process.stdin.flush()
    except BrokenPipeError:
        error = child.died()
        child.close()
        raise error from None
    return child


def request_from_parent() -> tuple[Any, BinaryIO]:
    """Called first in a child: the parent's request and the stream for answers, each written with `answer`.

    From here on this process ends when its parent does, and what anything prints on stdout goes to the log.
    """
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    request = pickle.load(sys.stdin.buffer)  # noqa: S301  written by our own code in `start`
    _end_with_parent()
    return request, answers


def answer(answers: BinaryIO, value: object) -> None:
    """Send a value, or an error that the parent is to raise."""
    pickle.dump(value, answers)
    answers.flush()


def log_tail(descriptor: int) -> str:
    """The last lines that were printed to a log file."""
    size = os.fstat(descriptor).st_size
    text = os.pread(descriptor, _LOG_BYTES, max(0, size - _LOG_BYTES)).decode(errors="replace")
    return "\n".join([f"    {line.rstrip()}" for line in text.splitlines() if line.strip()][-_LOG_LINES:])


def thread_count() -> int:
    """Threads for llama.cpp: `OMP_NUM_THREADS` if it is set, else the cores that this process may use."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def require_xllamacpp() -> None:
    """Refuse early, in the parent, where xllamacpp is not installed.

    Raises:
        MissingDependencyError: it is not.
    """
    if find_spec("xllamacpp") is None:
        raise MissingDependencyError("the engine llamacpp needs the package xllamacpp", next="pip install 'deepen[run]'")


def _end_with_parent() -> None:
    # The kernel sends SIGIO, whose default is to end the process, when the pipe's other end closes. That works even while
    # llama.cpp holds Python's lock, and unlike Linux' parent-death signal it does not depend on the parent's thread.
    descriptor = sys.stdin.fileno()
    fcntl.fcntl(descriptor, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([descriptor], [], [], 0)[0]:  # the parent was gone before
        os._exit(0)
