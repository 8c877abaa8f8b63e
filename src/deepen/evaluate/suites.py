"""Which options a suite takes, and how it is measured: from a model and options to the results of tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from deepen.checkpoint.gguf import is_gguf
from deepen.data.text import Paths
from deepen.errors import DataError, OptionError
from deepen.evaluate.perplexity import Scores, Settings, check_settings, score, summarise
from deepen.evaluate.results import TaskResult
from deepen.evaluate.tasks import SUITES as BENCHMARKS
from deepen.evaluate.tasks import check_limit, expand, find

SUITES = ("perplexity", *sorted(BENCHMARKS, reverse=True), "bias", "contamination")
"""What `--suite` takes."""
CUSTOM = "tasks"
"""The suite of a choice of tasks that is none of them."""

_WINDOW = 512
_COMMON = {"data", "device", "dtype", "plan", "limit"}
_TAKEN: Mapping[str, set[str]] = {
    "perplexity": _COMMON | {"window", "stride", "tokens", "compare", "engine"},
    "bias": _COMMON | {"batch_size", "compare", "engine"},
    "contamination": _COMMON | {"benchmarks", "reference_model"},
}
_TAKEN_BY_BENCHMARKS = _COMMON | {"tasks", "batch_size", "compare", "engine", "reduce_shots", "reference"}


@dataclass(frozen=True)
class Job:
    """What is measured, with which options; None and empty where an option was not given.

    Attributes:
        suite: one of `SUITES`, or `tasks`.
        tasks: names of tasks, if the suite has a choice.
        data: texts, the folder of benchmarks, or the training files.
        options: the others that the suite takes.
        where: `device` and `dtype`.
    """

    suite: str
    tasks: tuple[str, ...]
    data: tuple[str | Path, ...]
    options: Mapping[str, Any]
    where: Mapping[str, Any]


@dataclass(frozen=True)
class Measured:
    """What one model came to.

    Attributes:
        tasks: the results.
        scores: of each token, for a perplexity.
        lm_eval: lm-eval's own results, where it was used.
        notes: what must be said of the numbers.
    """

    tasks: dict[str, TaskResult]
    scores: Scores | None = None
    lm_eval: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def prepare(suite: str | None, tasks: Sequence[str] | str | None, data: Paths | None, **options: Any) -> Job:
    """Check everything that can be known before a model is loaded.

    Raises:
        OptionError: no such suite or task (with the nearest names), an option that the suite does not take or out of range.
        DataError: the suite needs data.
    """
    chosen = tuple(tasks.split(",")) if isinstance(tasks, str) else tuple(tasks or ())
    suite = suite or (CUSTOM if chosen else "perplexity")
    if suite != CUSTOM and suite not in SUITES:
        near = get_close_matches(suite, SUITES, 1, cutoff=0.0)
        raise OptionError(f"no suite is called {suite!r}", where="--suite", next=f"did you mean {near[0]}? all: {_all()}")
    if suite == CUSTOM and not chosen:
        raise OptionError("no task is named", where="--tasks", next=f"name some, or use --suite {_all()}")
    files = () if data is None else (data,) if isinstance(data, str | Path) else tuple(data)
    where = {key: options.pop(key) for key in ("device", "dtype")}
    given = {key: value for key, value in options.items() if value is not None and value is not False and value != ()}
    _refuse_others(suite, given | ({"tasks": chosen} if chosen else {}))
    check_limit(given.get("limit"))
    if given.get("batch_size", 1) < 1:
        raise OptionError(f"a batch of {given['batch_size']} is none", where="--batch-size", next="use 1 or more")
    match suite:
        case "perplexity":
            if not files:
                raise DataError("a perplexity needs a text", where="--data", next="name .txt, .md, .jsonl or .parquet files")
            check_settings(settings(given))
        case "contamination":
            _check_contamination(files, given, where)
        case "bias":
            _one_folder(files)
        case _:
            chosen = tuple(expand(chosen or (suite,)))
            for name in chosen:
                find(name)
            _one_folder(files)
    return Job(suite, chosen, files, given, where)


def settings(options: Mapping[str, Any]) -> Settings:
    """The windows of a perplexity."""
    window = options.get("window", _WINDOW)
    return Settings(window, options.get("stride", window), options.get("tokens"), options.get("limit"))


def measure(model: str | Path, job: Job, plan: Mapping[str, Any] | None) -> Measured:
    """Let a model do it."""
    match job.suite:
        case "perplexity":
            return _perplexity(model, job, plan)
        case "contamination":
            return _contamination(model, job, plan)
        case "bias":
            return _bias(model, job, plan)
    return _benchmarks(model, job, plan)


def _perplexity(model: str | Path, job: Job, plan: Mapping[str, Any] | None) -> Measured:
    engine, runs = job.options.get("engine", "auto"), "llamacpp" if is_gguf(Path(model)) else "transformers"
    if engine not in ("auto", runs):
        raise OptionError(
            f"the perplexity of {'a GGUF file' if runs == 'llamacpp' else 'a checkpoint'} is measured by {runs}, not {engine}",
            where="--engine",
            next="leave it away",
        )
    chosen = settings(job.options)
    scores = score(model, list(job.data), chosen, plan=plan, **job.where)
    task = summarise(scores)
    notes = []
    if task.facts["windows"] < task.facts["all_windows"]:
        notes.append(f"perplexity: {task.facts['windows']:,} of {task.facts['all_windows']:,} windows, evenly spaced")
    if scores.unit == "window":
        notes.append("perplexity: one document only, so that the interval is over its windows")
    return Measured({task.name: task}, scores, notes=tuple(notes))


def _benchmarks(model: str | Path, job: Job, plan: Mapping[str, Any] | None) -> Measured:
    from deepen.evaluate.harness import run_tasks

    options = {key: job.options[key] for key in ("limit", "batch_size", "engine", "reduce_shots") if key in job.options}
    found = run_tasks(
        model, job.tasks, data=_folder(job), plan=plan, **job.where, **options,
    )  # fmt: skip
    return Measured(found.tasks, None, found.lm_eval, tuple(found.notes))


def _bias(model: str | Path, job: Job, plan: Mapping[str, Any] | None) -> Measured:
    from deepen.evaluate.bias import run_bias_tasks
    from deepen.evaluate.bias import summarise as by_category

    options = {key: job.options[key] for key in ("limit", "batch_size", "engine") if key in job.options}
    found = run_bias_tasks(model, data=_folder(job), plan=plan, **job.where, **options)
    return Measured(by_category(found.tasks), None, found.lm_eval, tuple(found.notes))


def _contamination(model: str | Path, job: Job, plan: Mapping[str, Any] | None) -> Measured:
    from deepen.evaluate.contamination import contamination, min_k

    benchmarks = list(job.options["benchmarks"])
    tasks = contamination(list(job.data), benchmarks) if job.data else {}
    reference = job.options.get("reference_model")
    if reference is not None:
        options = {key: job.options[key] for key in ("limit",) if key in job.options}
        tasks |= min_k(model, reference, benchmarks, plan=plan, **job.where, **options)
    return Measured(tasks)


def _refuse_others(suite: str, given: Mapping[str, Any]) -> None:
    """Options that a suite does not take are refused, not ignored."""
    for key in given:
        if key not in _TAKEN.get(suite, _TAKEN_BY_BENCHMARKS):
            homes = [each for each in SUITES if key in _TAKEN.get(each, _TAKEN_BY_BENCHMARKS)]
            raise OptionError(
                f"the suite {suite} does not take it",
                where=f"--{key.replace('_', '-')}",
                next=f"leave it away, or use --suite {' or '.join(homes)}",
            )


def _check_contamination(files: Sequence[str | Path], given: Mapping[str, Any], where: Mapping[str, Any]) -> None:
    if not given.get("benchmarks"):
        raise OptionError("no benchmark is named", where="--benchmarks", next="name some, such as gsm8k, or a folder of rows")
    if not files and given.get("reference_model") is None:
        raise DataError(
            "nothing to compare the benchmarks with", where="--data",
            next="name training files; or a --reference-model, for Min-K% probability",
        )  # fmt: skip
    # n-grams are looked for in all rows, and by no model
    idle = [key for key in ("limit", "plan") if key in given] + [key for key, value in where.items() if value is not None]
    if idle and given.get("reference_model") is None:
        raise OptionError(
            "it is for Min-K% probability only", where=f"--{idle[0]}", next="leave it away, or name a --reference-model"
        )


def _one_folder(files: Sequence[str | Path]) -> None:
    if len(files) > 1:
        raise OptionError(
            f"{len(files)} folders of benchmarks", where="--data", next="put the data sets into one folder, and name that"
        )
    if files and not Path(files[0]).is_dir():
        raise DataError("the folder of benchmark data does not exist", where=files[0], next="name an existing folder")


def _folder(job: Job) -> Path | None:
    return Path(job.data[0]) if job.data else None


def _all() -> str:
    return ", ".join(SUITES)


def mean(values: Sequence[float]) -> float:
    """The plain mean; that of one value is the value itself."""
    return math.fsum(values) / len(values)
