"""A second opinion on values that are not understood here, by math-verify where it is installed.

math-verify keeps time by signals, which fail in threads, and can hang for ever; so each worker is a process of its own, which
is ended when it takes too long. Only values that are no more than words to `values` are shown to it.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

_SECONDS, _START_SECONDS = 10.0, 120.0


def is_available() -> bool:
    """Whether math-verify is installed."""
    return find_spec("math_verify") is not None


def judge(pairs: Sequence[tuple[str, str]], *, seconds: float = _SECONDS) -> list[bool]:
    """Whether values equal their golds, which come before them, both as they are written; what takes too long does not."""
    workers = min(len(pairs), 4, os.cpu_count() or 1)
    if not workers:
        return []
    verdicts = [False] * len(pairs)

    def work(first: int) -> None:
        process = None
        try:
            for number in range(first, len(pairs), workers):
                process = process or _start()
                verdict = _ask(process, json.dumps(pairs[number]), seconds) if process else None
                if verdict is None and process:
                    _end(process)
                    process = None
                verdicts[number] = verdict == "true"
        finally:
            if process:
                _end(process)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, range(workers)))
    return verdicts


def _start() -> subprocess.Popen[bytes] | None:
    command = [sys.executable, "-P", "-m", "deepen.synthesize.judge"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0)
    if _line(process, _START_SECONDS) == "ready":
        return process
    _end(process)
    return None


def _ask(process: subprocess.Popen[bytes], question: str, seconds: float) -> str | None:
    assert process.stdin
    try:
        process.stdin.write(question.encode() + b"\n")
    except BrokenPipeError:
        return None
    return _line(process, seconds)


def _line(process: subprocess.Popen[bytes], seconds: float) -> str | None:
    assert process.stdout
    if not select.select([process.stdout], [], [], seconds)[0]:
        return None
    return process.stdout.readline().decode().strip() or None


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def _serve() -> None:
    """The worker: a pair a line in, a verdict a line out."""
    from math_verify import parse, verify  # type: ignore[import-not-found, unused-ignore]

    print("ready", flush=True)
    for line in sys.stdin:
        gold, value = json.loads(line)
        try:
            equal = bool(verify(parse(f"\\boxed{{{gold}}}"), parse(f"\\boxed{{{value}}}")))
        except Exception:
            equal = False
        print("true" if equal else "false", flush=True)


if __name__ == "__main__":
    _serve()
