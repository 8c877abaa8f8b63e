"""Run a verb again and again, each time with a fault at another point of its life, in forked children of one warm process.

After each fault: nothing claims to be complete that is not; the next run ends well; its result is that of a run which nothing
disturbed, byte for byte but for what the clock tells. A stop (SIGTERM, SIGINT) ends within two seconds with its exit code and a
message. A storage fault ends with an exit code of `deepen.errors` and a message, never with a traceback.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from faults import shim
from faults.shim import KILLS, STOPS, STORAGE, Fault
from faults.verbs import VERBS, contents, prepare

STOP_SECONDS = 2.0
_LIMIT_SECONDS = 120.0
_CODES = {"SIGTERM": 143, "SIGINT": 130}


@dataclass
class Ended:
    """How a child ended: its exit code (negative: the signal), what it said, calls that it made, seconds after a stop."""

    code: int
    said: str
    calls: int
    seconds_after_stop: float | None = None


@dataclass
class Report:
    """What the trials of one verb found."""

    verb: str
    calls: int = 0
    seconds: float = 0.0
    trials: dict[str, int] = field(default_factory=dict)
    slowest_stop_seconds: float = 0.0
    violations: list[str] = field(default_factory=list)


class Ground:
    """A folder in which one verb runs again and again, always at the same path, so that manifests name the same files."""

    def __init__(self, verb: str, inputs: Path, folder: Path, url: str) -> None:
        self.verb, self.spec, self.inputs, self.folder = verb, VERBS[verb], inputs, folder
        self.words = self.spec.words.format(url=url).split()
        self.work = folder / "work"
        folder.mkdir()

    def clear(self) -> None:
        """Begin anew."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        for each in self.inputs.iterdir():
            if each.name not in self.spec.outputs:  # a link, so that no run can change what the next one reads
                (self.work / each.name).symlink_to(each)

    def run(self, fault: Fault, *extra: str) -> Ended:
        """Run the command in a child."""
        log = self.folder / "log"
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            _be_the_command([*self.words, *extra], self.work, log, fault, writing)
        os.close(writing)
        status = _wait(child)
        ended = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # an engine that it left
        with os.fdopen(reading, "rb") as pipe:
            told = pipe.read().split()
        stopped = float(told[0]) if told and b"." in told[0] else None
        calls = int(told[-1][1:]) if told and told[-1].startswith(b"#") else 0
        code = -9999 if status is None else os.waitstatus_to_exitcode(status)
        return Ended(code, log.read_text(errors="replace"), calls, None if stopped is None else ended - stopped)

    def found(self) -> dict[str, bytes]:
        """What is there of the outputs."""
        return contents(self.work, tuple(name for name in self.spec.outputs if os.path.lexists(self.work / name)))

    def names(self) -> list[str]:
        """Everything in the folder but the cache."""
        paths = [each.relative_to(self.work) for each in self.work.rglob("*")]
        return sorted(path.as_posix() for path in paths if path.parts[0] not in {"cache", "data"})


def _be_the_command(words: Sequence[str], work: Path, log: Path, fault: Fault, pipe: int) -> None:
    """In the child: run the command as the program would, and leave; never returns."""
    code = 99
    try:
        os.setsid()
        said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(said, 1)
        os.dup2(said, 2)
        os.chdir(work)
        os.environ |= {"DEEPEN_CACHE": str(work / "cache"), "DEEPEN_DATA": str(work / "data")}
        from deepen.cli import run_program

        state = shim.install(fault, pipe)
        code = run_program(words)
        shim._real["write"](pipe, f"#{state.calls}\n".encode())
        threading._shutdown()
        atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _wait(child: int) -> int | None:
    deadline = time.monotonic() + _LIMIT_SECONDS
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


class Trials:
    """The trials of one verb."""

    def __init__(self, ground: Ground, seed: int) -> None:
        self.ground, self.report, self.random = ground, Report(ground.verb), random.Random(f"{seed} {ground.verb}")

    def undisturbed(self) -> None:
        """A reference, and a second one that must be equal."""
        self.ground.clear()
        first = self.ground.run(Fault("count", 0))
        self.expect(first.code == 0, "undisturbed", f"ends with {first.code}: {first.said[-2000:]}")
        self.wanted, self.names = self.ground.found(), self.ground.names()
        self.report.calls = first.calls
        sizes = [each.stat().st_size for each in self.ground.work.rglob("*") if each.is_file() and not each.is_symlink()]
        self.largest = max(sizes, default=1)
        self.ground.clear()
        self.ground.run(Fault("count", 0))
        self.compare("undisturbed again")

    def try_fault(self, fault: Fault) -> None:
        """One fault, one look, one run more."""
        what = f"{fault.kind} at {fault.at}"
        self.report.trials[fault.kind] = self.report.trials.get(fault.kind, 0) + 1
        self.ground.clear()
        ended = self.ground.run(fault)
        complete = self.look(what)
        if fault.kind in KILLS:
            self.expect(
                ended.code in {-signal.SIGKILL, -signal.SIGXFSZ, 0}, what, f"ended with {ended.code}: {ended.said[-1500:]}"
            )
        elif fault.kind in STOPS:
            self.stopped(ended, fault, what)
        else:
            self.told(ended, fault, what, complete=complete)
        again = self.ground.run(Fault("count", 0))
        refused = again.code == 2 and complete and "exists" in again.said
        self.expect(again.code == 0 or refused, what, f"the next run ends with {again.code}: {again.said[-1500:]}")
        self.compare(f"{what}, run again")

    def stopped(self, ended: Ended, fault: Fault, what: str) -> None:
        """A stop ends soon, with its code and a message; unless the work was done by then."""
        if ended.seconds_after_stop is not None and ended.code != 0:
            self.report.slowest_stop_seconds = max(self.report.slowest_stop_seconds, ended.seconds_after_stop)
            self.expect(ended.seconds_after_stop < STOP_SECONDS, what, f"took {ended.seconds_after_stop:.1f} s to end")
        self.expect(ended.code in {_CODES[fault.kind], 0}, what, f"ended with {ended.code}: {ended.said[-1500:]}")
        said = "terminated" if fault.kind == "SIGTERM" else "interrupted"
        self.expect(ended.code == 0 or said in ended.said, what, f"said nothing of it: {ended.said[-300:]}")
        self.expect("Traceback" not in ended.said, what, f"a traceback: {ended.said[-1500:]}")

    def told(self, ended: Ended, fault: Fault, what: str, *, complete: bool) -> None:
        """A storage fault is told, or harmless."""
        harmless = ended.code == 0 and complete
        if fault.kind in {"short", "slow"}:
            self.expect(harmless, what, f"ended with {ended.code}: {ended.said[-1500:]}")
        self.expect(harmless or ended.code in {2, 3}, what, f"ended with {ended.code}: {ended.said[-1500:]}")
        bad = next((word for word in ("Traceback", "inside deepen", "Exception ignored") if word in ended.said), None)
        self.expect(bad is None, what, f"{bad}: {ended.said[-2500:]}")
        self.expect(harmless or "\n  Next: " in ended.said, what, f"does not say what next: {ended.said[-500:]}")

    def look(self, what: str) -> bool:
        """What is there after a fault is complete; whether all of it is there."""
        found = self.ground.found()
        if self.ground.verb == "support":  # a database, which must be sound at any time
            return bool(found) and b'"ok"' in found["index.sqlite"]
        if self.ground.verb == "run":  # each stage is an output of its own
            wrong = [name for name, data in found.items() if self.wanted.get(name) not in {data, None}]
        else:
            wrong = [name for name, data in found.items() if self.wanted.get(name) != data]
            tops = {name.split("/")[0] for name in found}
            wrong += [name for name in self.wanted if name.split("/")[0] in tops and name not in found]
        self.expect(not wrong, what, f"there is an incomplete output: {wrong[:3]}")
        return found == self.wanted

    def compare(self, what: str) -> None:
        """Everything is as undisturbed."""
        found = self.ground.found()
        wrong = [name for name in {**self.wanted, **found} if self.wanted.get(name) != found.get(name)]
        self.expect(not wrong, what, f"differs from the undisturbed: {wrong[:5]}")
        names = self.ground.names()
        self.expect(names == self.names, what, f"left {sorted(set(names) ^ set(self.names))}")

    def expect(self, true: bool, what: str, told: str) -> None:
        """Note a violation."""
        if not true:
            self.report.violations.append(f"{self.ground.verb}, {what}: {told}")
            print(self.report.violations[-1], file=sys.stderr, flush=True)

    def points(self, kind: str, count: int) -> list[Fault]:
        """Points spread over the life of the verb, one drawn from each of `count` equal parts."""
        end = self.largest if kind in {"bytes", "full"} else self.report.calls
        count = min(count, end)
        edges = [1 + end * part // count for part in range(count + 1)]
        return [Fault(kind, self.random.randrange(low, max(high, low + 1))) for low, high in itertools.pairwise(edges)]


@contextlib.contextmanager
def endpoint() -> Iterator[str]:
    """An endpoint of OpenAI's protocol in a process of its own; its URL."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        from faults.speaker import Speaker

        os.close(reading)
        speaker = Speaker()
        os.write(writing, f"{speaker.url}\n".encode())
        os.close(writing)
        speaker.serve_forever()
        os._exit(0)
    os.close(writing)
    try:
        with os.fdopen(reading) as pipe:
            yield pipe.readline().strip()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def warm() -> None:
    """Import what the verbs import, once for all children."""
    import torch

    torch.set_num_threads(1)
    import matplotlib.pyplot
    import transformers

    import deepen

    transformers.utils.logging.disable_progress_bar()
    del matplotlib
    for name in set(deepen.__all__) - {"Plan", "Synthesis"}:
        getattr(deepen, name)


def try_verbs(verbs: Sequence[str], counts: dict[str, int], *, seed: int, say: Any = print) -> list[Report]:
    """All trials of some verbs.

    Args:
        verbs: their names.
        counts: how many points for each kind of fault.
        seed: of the points.
        say: is told how far it is.
    """
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "MKL_NUM_THREADS": "1"}
    reports = []
    folder = Path(tempfile.mkdtemp(prefix="deepen-faults-"))
    try:
        with endpoint() as url:
            warm()
            (folder / "inputs").mkdir()
            prepare(folder / "inputs")
            for verb in verbs:
                began = time.monotonic()
                trials = Trials(Ground(verb, folder / "inputs", folder / verb, url), seed)
                trials.undisturbed()
                for kind, count in counts.items():
                    for fault in trials.points(kind, count):
                        trials.try_fault(fault)
                trials.report.seconds = round(time.monotonic() - began, 1)
                reports.append(trials.report)
                report = trials.report
                say(f"{verb}: {report.calls} calls, {sum(report.trials.values())} faults, "
                    f"{len(report.violations)} violations, {report.seconds} s")  # fmt: skip
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return reports


def main() -> None:
    """`python -m faults.trials VERB… --kill 20 --json FILE`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("verbs", nargs="*", default=list(VERBS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    for kind in (*KILLS, *STOPS, *STORAGE):
        parser.add_argument(f"--{kind}", type=int, default=0, metavar="N")
    given = parser.parse_args()
    counts = {kind: getattr(given, kind) for kind in (*KILLS, *STOPS, *STORAGE) if getattr(given, kind)}
    reports = try_verbs(given.verbs, counts, seed=given.seed, say=lambda text: print(text, flush=True))
    if given.json:
        given.json.write_text(json.dumps([asdict(report) for report in reports], indent=2) + "\n")
    violations = [each for report in reports for each in report.violations]
    sys.exit(bool(violations))


if __name__ == "__main__":
    main()
