"""Two models on the same rows: what separates them, how sure that is, and what may be said. Never a bare difference."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from deepen.errors import DataError
from deepen.evaluate.perplexity import Scores, difference
from deepen.evaluate.results import TaskResult
from deepen.evaluate.statistics import Difference, Verdict, judge, paired_difference

_LOWER_IS_BETTER = {"perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "ppl", "wer", "ter"}
_NEUTRAL = {"crows_pairs": 0.5, "bbq_ambiguous": 0.0, "bbq_disambiguated": 0.0}
"""Where a bias is none; the nearer, the better."""
_Z = 1.959963984540054


@dataclass(frozen=True)
class Comparison:
    """The judged model against another one, on one task.

    Attributes:
        value: of the judged model.
        other: of the other one.
        difference: on equal rows, the judged model's less the other's, in `unit`.
        low: lower end of its 95 % interval; None if it cannot be known.
        high: upper end.
        p: of McNemar's exact test, for rows that are right or wrong; otherwise None.
        verdict: `better`, `worse` or `cannot tell`, of the judged model.
        unit: of the difference: that of the metric, `nats per token` or `bits per byte`.
        n: rows, or documents or windows, that were compared.
    """

    value: float
    other: float
    difference: float
    low: float | None
    high: float | None
    p: float | None
    verdict: Verdict
    unit: str
    n: int

    def to_dict(self) -> dict[str, Any]:
        """The comparison in the report's JSON."""
        return asdict(self)


def compare(
    ours: Mapping[str, TaskResult], theirs: Mapping[str, TaskResult], *, averaged: bool = True
) -> dict[str, Comparison]:
    """Compare two models on the tasks that both answered, and on their average if it means anything.

    Raises:
        DataError: a task's rows are not the same for both.
    """
    found: dict[str, Comparison] = {}
    differences: list[Difference] = []
    for name, own in ours.items():
        against = theirs[name]
        differences.append(_paired(own, against))
        found[name] = _comparison(own.value, against.value, differences[-1], own.metric, len(own.items))
    if averaged and len(found) > 1 and len({task.metric in _LOWER_IS_BETTER for task in ours.values()}) == 1:
        value, other = (sum(task.value for task in tasks.values()) / len(tasks) for tasks in (ours, theirs))
        rows = sum(len(task.items) for task in ours.values())
        found["average"] = _comparison(value, other, _average(differences), "average", rows)
    return found


def compare_perplexity(ours: TaskResult, theirs: TaskResult, scores: Scores, others: Scores) -> Comparison:
    """Compare two models on a text; see `perplexity.difference` for the unit."""
    found, unit = difference(scores, others)
    return _comparison(ours.value, theirs.value, found, unit, len(ours.items))


def _paired(ours: TaskResult, theirs: TaskResult) -> Difference:
    own, other = ({item.key: item.score for item in task.items} for task in (ours, theirs))
    if own.keys() != other.keys() or not own:
        missing = len(own.keys() ^ other.keys())
        raise DataError(
            f"{missing} rows were answered by one model only" if own else "there are no rows to compare",
            where=ours.name,
            next="give both the same data and limit",
        )
    if ours.shots != theirs.shots:
        raise DataError(
            f"one model was given {ours.shots} solved examples, the other {theirs.shots}",
            where=ours.name,
            next="compare models whose windows hold the same examples",
        )
    # MMLU counts each subject once; a key names its part before the slash
    strata = [key.partition("/")[0] for key in own] if "subjects" in ours.facts else None
    higher, sides = ours.metric not in _LOWER_IS_BETTER, 1.0
    if ours.name in _NEUTRAL:
        away = ours.value - _NEUTRAL[ours.name]
        higher, sides = away < 0, away * (theirs.value - _NEUTRAL[ours.name])
    found = paired_difference([*own.values()], [other[key] for key in own], strata=strata, higher_is_better=higher)
    # of a bias to one side and one to the other, which is the larger the difference does not say
    return found if sides > 0 else found._replace(verdict="cannot tell")


def _average(differences: list[Difference]) -> Difference:
    """Of independent tasks: their mean, and its interval from the sum of their variances."""
    value = sum(each.difference for each in differences) / len(differences)
    errors = [each.stderr for each in differences]
    if None in errors:
        return Difference(value, None, None, None, "cannot tell", None)
    error = math.sqrt(sum(each**2 for each in errors if each is not None)) / len(errors)
    low, high = value - _Z * error, value + _Z * error
    return Difference(value, low, high, None, judge(low, high), error)


def _comparison(value: float, other: float, found: Difference, unit: str, rows: int) -> Comparison:
    return Comparison(value, other, found.difference, found.low, found.high, found.p, found.verdict, unit, rows)
