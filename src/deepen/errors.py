"""What can go wrong, by who must act.

    DeepenError
    ├── Refuted                1  the work ran and its answer is "no" (a verification that failed)
    ├── UserError              2  the user must change something
    │   ├── OptionError           a command-line option or argument of a verb
    │   ├── PlanError             a layer plan: empty, reversed, out of range
    │   ├── CheckpointError       a model file or folder: missing, cut, lying, unreadable
    │   ├── UnsupportedModelError a sound model that this verb cannot treat correctly
    │   ├── RecipeError           a recipe file
    │   ├── DataError             training or evaluation data
    │   ├── OutputError           a target that exists or cannot be written
    │   ├── ResourceError         too little memory or disk for the job
    │   └── MissingDependencyError an extra that is not installed
    └── MachineError           3  the environment failed
        ├── NetworkError          a connection that broke
        └── StorageError          a disk that is full or failing

Every message has three parts: what is wrong, where, and what to do next.
"""

from __future__ import annotations

import re
from pathlib import Path

# what can steer a terminal or reorder text: C0 (but tab and newline), DEL, C1, bidirectional marks, lone surrogates
_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object) -> str:
    """Text that is safe to print: control characters and direction marks become visible escapes."""
    return _STEERING.sub(lambda match: match[0].encode("unicode_escape").decode(), str(text))


class DeepenError(Exception):
    """Base of every error that deepen raises on purpose.

    Args:
        what: what is wrong, one sentence with the offending value.
        where: the file, option, tensor or row that it concerns.
        next: what the user can do about it.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str | Path | None = None, next: str | None = None) -> None:  # noqa: A002
        self.what = what
        self.where = None if where is None else str(where)
        self.next = next
        super().__init__(str(self))

    def __str__(self) -> str:
        """The message as the user sees it: `where: what` and, on its own line, what to do next."""
        where = "" if self.where is None else self.where.replace("\n", "\\n") + ": "
        advice = "" if self.next is None else f"\n  Next: {self.next}"
        return printable(f"{where}{self.what}{advice}")

    def __reduce__(self) -> tuple[object, ...]:
        """Errors cross process borders whole."""
        return _rebuild, (type(self), self.what, self.where, self.next)


def _rebuild(kind: type[DeepenError], what: str, where: str | None, advice: str | None) -> DeepenError:
    return kind(what, where=where, next=advice)


class Refuted(DeepenError):
    """The work ran and its answer is "no": a verification that found a difference."""

    exit_code = 1


class UserError(DeepenError):
    """The user must change something before this can work."""


class OptionError(UserError):
    """An option or argument is missing, contradictory or out of its range."""


class PlanError(UserError):
    """A layer plan is malformed or does not fit the model."""


class CheckpointError(UserError):
    """A checkpoint is missing, cut, inconsistent or of a kind that is not read."""


class UnsupportedModelError(UserError):
    """The model is sound, but this verb cannot treat it correctly, and says why."""


class RecipeError(UserError):
    """A recipe has unknown keys, wrong values or stages that do not fit together."""


class DataError(UserError):
    """Training or evaluation data is missing, empty or malformed."""


class OutputError(UserError):
    """The output exists already or its place cannot be written."""


class ResourceError(UserError):
    """The job needs more memory or disk than there is."""


class MissingDependencyError(UserError):
    """A verb needs an extra of deepen that is not installed."""


class MachineError(DeepenError):
    """The environment failed; nothing the user typed was wrong."""

    exit_code = 3


class NetworkError(MachineError):
    """A connection broke while data was on its way."""


class StorageError(MachineError):
    """The disk is full or returned an error."""
