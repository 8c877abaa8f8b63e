"""A recipe in many processes, as `torchrun` or SLURM starts them: the first runs it, the others join it to train.

What is not distributed happens in the first process alone, for as long as it takes; the others wait for its next word. Words
travel through the key-value store where the processes meet anyway, so nothing waits in a collective that may run out of time.
"""

from __future__ import annotations

import functools
import os
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

from deepen.errors import DeepenError, OutputError
from deepen.pipeline.steps import Step

_TRAINING = {"pretrain", "instruct", "align"}
_GROUP = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_SECONDS = 0.1
_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")
_Call = Callable[..., Any]


def is_first() -> bool:
    """Whether this process is the only one or the first."""
    return int(os.environ.get("RANK", 0)) == 0


def conducted(run: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """Let the first process do it, and the others what it tells them; all return the same, or end with the same code."""

    @functools.wraps(run)
    def wrapped(*args: _Parameters.args, **options: _Parameters.kwargs) -> _Result:
        if int(os.environ.get("WORLD_SIZE", 1)) == 1 or options.get("dry_run"):
            return run(*args, **options)
        if not is_first():
            return _follow()  # type: ignore[no-any-return]
        with _leading():
            result = run(*args, **options)
            _say("done", result)
        return result

    return wrapped


def joined(call: _Call) -> _Call:
    """Let all processes do a stage that trains; the first calls it, the others hear of it in `conducted`."""
    _calls.append(call)

    @functools.wraps(call)
    def wrapped(step: Step, **options: Any) -> Any:
        if _store is None:
            return call(step, **options)
        if step.stage.stage in _TRAINING:
            _say("join", (step, options))
            return call(step, **options)
        with _alone():
            return call(step, **options)

    return wrapped


@contextmanager
def _alone() -> Iterator[None]:
    """What is called in here takes this process for the only one, and waits for no other."""
    hidden = {name: os.environ.pop(name) for name in _GROUP if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


_calls: list[_Call] = []
_store: Any = None  # where the processes meet, while one conducts the others
_words = 0  # how many were said, or heard


def _meet() -> Any:
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://"))
    # a launcher that starts all processes anew keeps the store
    return PrefixStore(f"deepen-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


@contextmanager
def _leading() -> Iterator[None]:
    global _store
    _store = _store or _meet()
    try:
        yield
    except DeepenError as error:
        _say("failed", error.exit_code)
        raise
    except BaseException:
        _say("failed", 1)
        raise


def _say(kind: str, what: Any) -> None:
    global _words
    _words += 1
    _store.set(str(_words), pickle.dumps((kind, what)))


def _follow() -> Any:
    """Do what the first process says until it is done."""
    global _store, _words
    _store = _store or _meet()
    while True:
        _words += 1
        while not _store.check([str(_words)]):
            time.sleep(_SECONDS)  # in Python, so that a signal to end is heard
        kind, what = pickle.loads(_store.get(str(_words)))  # noqa: S301  from our own first process
        match kind:
            case "join":
                step, options = what
                if not step.out.parent.is_dir():
                    raise OutputError(
                        f"process {os.environ['RANK']} does not see the folder of the run",
                        where=step.out.parent,
                        next="let all nodes share it: give --out a folder on a common disk",
                    )
                _calls[-1](step, **options)
            case "failed":  # the first process says why
                raise SystemExit(what)
            case _:
                return what
