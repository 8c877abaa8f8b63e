"""An evaluation in words for people: the same tables for the terminal, for Markdown and for the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from deepen.evaluate.compare import Comparison
from deepen.evaluate.published import TASKS
from deepen.evaluate.results import TaskResult
from deepen.units import format_energy, format_seconds

if TYPE_CHECKING:
    from deepen.evaluate import Report

TITLES: Mapping[str, str] = {
    "arc_challenge": "ARC", "hellaswag": "HellaSwag", "mmlu": "MMLU", "truthfulqa_mc2": "TruthfulQA",
    "winogrande": "Winogrande", "gsm8k": "GSM8K",
}  # fmt: skip
"""How the columns of the leaderboard are called."""

PAIRED = "Differences of pairs: the same rows, or the same text, for both models"
AVERAGED = ("h6", "h4", "tasks")
_LARGE = 1e5
_SHOWN = 80  # characters of what matches
_UNITS = {"nats per token", "bits per byte"}
# what a result has besides its value: name in its facts, and in words
_FURTHER = (
    ("bits_per_byte", "bits per byte"),
    ("byte_perplexity", "perplexity per byte"),
    ("word_perplexity", "perplexity per word"),
    ("flexible_extract", "last number in the answer"),
)


class Table(NamedTuple):
    """A table with what it is about."""

    about: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]


def results_table(report: Report) -> Table:
    """Each task with its value, its interval, how many rows that is over, and what it took."""
    rows = []
    energy = any(task.energy_joules is not None for task in report.results.values())
    for name, task in report.results.items():
        scored = f"{task.n:,}" if task.n == task.rows else f"{task.n:,} of {task.rows:,}"
        row = [name, task.metric, amount(task, task.value), interval(task, task.low, task.high), scored, str(task.shots)]
        joules = "" if task.energy_joules is None else format_energy(task.energy_joules)
        rows.append((*row, format_seconds(task.seconds), *([joules] if energy else [])))
        blank = ("", "", "", *([""] if energy else []))
        for key, words in _FURTHER:
            if task.facts.get(key) is not None:
                ends = task.facts.get(f"{key}_low"), task.facts.get(f"{key}_high")
                rows.append(("", words, amount(task, task.facts[key]), interval(task, *ends), *blank))
    if (
        report.suite in AVERAGED
        and len(report.results) > 1
        and len({task.is_fraction for task in report.results.values()}) == 1
    ):
        first = next(iter(report.results.values()))
        ends = report.average_low, report.average_high
        blank = ("", "", format_seconds(report.seconds), *([""] if energy else []))
        rows.append(("average", "mean of the tasks", amount(first, report.average), interval(first, *ends), *blank))
    header = ("task", "metric", "value", "95 % interval", "scored", "shots", "time", *(["energy"] if energy else []))
    return Table(report.name, header, rows)


def comparison_table(report: Report, other: str) -> Table:
    """What separates the judged model from another one."""
    rows: list[tuple[str, ...]] = []
    for name, each in report.comparisons[other].items():
        task = report.results.get(name) or next(iter(report.results.values()))
        p = "" if each.p is None else f"{each.p:.2g}" if each.p >= 1e-4 else "<0.0001"
        rows.append((name, amount(task, each.value), amount(task, each.other), *_difference(task, each), p, each.verdict))
    header: tuple[str, ...] = ("task", "this model", "the other", "difference", "95 % interval", "p", "verdict")
    if not any(row[-2] for row in rows):  # nothing was right or wrong
        header, rows = (*header[:-2], header[-1]), [(*row[:-2], row[-1]) for row in rows]
    return Table(f"{report.name} against {other}. {PAIRED}", header, rows)


def reference_table(report: Report) -> Table:
    """The judged model's row above the published ones."""
    assert report.reference is not None
    own = [report.results.get(name) for name in TASKS]
    values = [task.value for task in own if task is not None]
    whole = _percent(sum(values) / len(values)) if len(values) == len(TASKS) else ""
    rows = [(report.name, "", whole, *("" if task is None else _percent(task.value) for task in own))]
    rows += [
        (row["model"], row["size"], _percent(row["average"]), *(_percent(value) for value in row["tasks"].values()))
        for row in report.reference["rows"]
    ]
    source = report.reference["rows"][0]
    about = f"Below the first row: {report.reference['label']} ({source['source']}; {source['harness']})"
    return Table(about, ("model", "size", "H6", *(TITLES[name] for name in TASKS)), rows)


def match_tables(report: Report, most: int | None = None) -> list[Table]:
    """For each benchmark the rows of training files that repeat its rows, at most so many."""
    found = []
    for name, task in report.results.items():
        if matches := task.facts.get("matches"):
            rows: list[tuple[str, ...]] = [
                (each["file"], str(each["row"]), str(each["benchmark_row"]), _percent(each["share"]), each["words"][:_SHOWN])
                for each in matches[:most]
            ]
            left = task.facts["matches_found"] - len(rows)
            about = f"Rows of training files that repeat rows of {name}" + (f", and {left:,} more" if left else "")
            found.append(Table(about, ("file", "row", "row of the benchmark", "repeated", "words of both"), rows))
    return found


def notes(report: Report) -> list[str]:
    """What must be said of the numbers."""
    meanings = [f"{name}: {task.facts['meaning']}" for name, task in report.results.items() if "meaning" in task.facts]
    return [*report.notes, *meanings]


def amount(task: TaskResult, value: float) -> str:
    """A value in the unit of its task."""
    return _percent(value) if task.is_fraction else f"{value:.3f}" if value < _LARGE else f"{value:.3e}"


def interval(task: TaskResult, low: float | None, high: float | None) -> str:
    """The ends of an interval in the unit of its task; nothing where they are not known."""
    return "" if low is None or high is None else f"{amount(task, low).removesuffix('%')} to {amount(task, high)}"


def _difference(task: TaskResult, found: Comparison) -> tuple[str, str]:
    points = task.is_fraction and found.unit not in _UNITS
    scale, digits, unit = (100, 2, "points") if points else (1, 4, found.unit)
    text = f"{scale * found.difference:+.{digits}f} {unit}"
    if found.low is None or found.high is None:
        return text, ""
    return text, f"{scale * found.low:+.{digits}f} to {scale * found.high:+.{digits}f}"


def _percent(value: float) -> str:
    return f"{100 * value:.2f}%"
