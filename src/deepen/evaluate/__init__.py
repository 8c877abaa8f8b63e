"""Judge a model by numbers that say how sure they are."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepen.checkpoint import resolve
from deepen.checkpoint.manifest import versions
from deepen.data.text import Paths
from deepen.energy import open_meter
from deepen.errors import OptionError
from deepen.evaluate.compare import Comparison, compare, compare_perplexity
from deepen.evaluate.published import LABEL, TASKS, published
from deepen.evaluate.results import TaskResult
from deepen.evaluate.suites import Job, Measured, mean, measure, prepare
from deepen.output import check_target
from deepen.units import parse_count

_Z = 1.959963984540054


@dataclass(frozen=True)
class Report:
    """What an evaluation found.

    Attributes:
        model: as it was given.
        suite: which measurements were made.
        tasks: per task its `metric`, `value`, `stderr`, `low` and `high` (None if they cannot be known), `n`, `rows`, `shots`,
            and facts of its own.
        average: mean of the tasks' values, and `average_low` and `average_high` the ends of its 95 % interval.
        seconds: how long it took, loading included.
        energy_joules: None where it is not measured.
        versions: of the packages that shape the result.
        plan: the layer plan, if the model was judged with one.
        limit: how many rows of each task, or windows, were taken; None for all.
        notes: what must be said of the numbers.
        comparisons: for each other model and each task what separates the judged model from it.
        reference: rows published elsewhere, and the label that they stand under.
        results: the tasks with their rows; not in the JSON.
        others: the same of each other model.
        lm_eval: lm-eval's own results; not in the JSON.
    """

    model: str
    suite: str
    tasks: dict[str, dict[str, Any]]
    average: float
    seconds: float
    energy_joules: float | None
    versions: dict[str, str]
    average_low: float | None = None
    average_high: float | None = None
    plan: Mapping[str, Any] | None = None
    limit: int | None = None
    notes: tuple[str, ...] = ()
    comparisons: Mapping[str, Mapping[str, Comparison]] = field(default_factory=dict)
    reference: Mapping[str, Any] | None = None
    results: Mapping[str, TaskResult] = field(default_factory=dict, repr=False)
    others: Mapping[str, Mapping[str, TaskResult]] = field(default_factory=dict, repr=False)
    lm_eval: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        """The model with its layer plan, as it is called beside others."""
        words = [
            f"--{key.replace('_', '-')}" + ("" if value is True else f" {value}") for key, value in (self.plan or {}).items()
        ]
        return " ".join([self.model, *words])

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `deepen evaluate --json`."""
        return {
            "model": self.model,
            "suite": self.suite,
            "tasks": self.tasks,
            "average": self.average,
            "average_low": self.average_low,
            "average_high": self.average_high,
            "seconds": self.seconds,
            "energy_joules": self.energy_joules,
            "versions": self.versions,
            "plan": None if self.plan is None else {key: _plain(value) for key, value in self.plan.items()},
            "limit": self.limit,
            "notes": list(self.notes),
            "models": {name: {key: task.to_dict() for key, task in tasks.items()} for name, tasks in self.others.items()},
            "comparisons": {
                name: {key: each.to_dict() for key, each in tasks.items()} for name, tasks in self.comparisons.items()
            },
            "reference": self.reference,
        }


def evaluate(
    model: str | Path,
    *,
    data: Paths | None = None,
    suite: str | None = None,
    tasks: Sequence[str] | str | None = None,
    limit: int | None = None,
    compare: Sequence[str | Path] | str | Path = (),
    reference: str | None = None,
    window: int | None = None,
    stride: int | None = None,
    tokens: str | int | None = None,
    benchmarks: Paths | None = None,
    reference_model: str | Path | None = None,
    batch_size: int | None = None,
    reduce_shots: bool = False,
    engine: str = "auto",
    out: str | Path | None = None,
    overwrite: bool = False,
    update_card: bool = False,
    device: str | None = None,
    dtype: str | None = None,
    drop: int | None = None,
    layers: str | None = None,
    repeat: str | None = None,
    expand: int | None = None,
    plan: str | Path | None = None,
    identity_init: bool = False,
) -> Report:
    """Measure a model; every number comes with its 95 % interval.

    A perplexity is measured on a text that is tokenised without special tokens, its documents separated by the end-of-text
    token, and cut into windows; each starts with an empty context. No token is scored twice, and the first of the text (with
    disjoint windows, the first of each) not at all. Its interval is over documents, or over windows if there is one only.

    Args:
        model: a checkpoint folder, a Hub id or a `.gguf` file, which llama.cpp runs.
        data: for a perplexity files of text; for benchmarks and bias a folder of data sets in the Hub's layout, the Hub itself
            unless given; for contamination the training files.
        suite: `perplexity` (unless tasks are given), `h6` or `h4` (Open LLM Leaderboard v1), `bias` or `contamination`.
        tasks: only these tasks of the suite; or, without a suite, any of lm-eval's.
        limit: only so many rows of each task, or windows, evenly spaced.
        compare: other models, which answer the same rows, without the layer plan.
        reference: `solar`: put the rows of SOLAR's Table 2 beside one's own.
        window: tokens that the model sees at once; 512 by default.
        stride: tokens from one window to the next; by default `window`, so that they do not overlap. A smaller one gives every
            token more context, and takes `window / stride` times as long.
        tokens: only the first so many tokens of the data, such as `4096` or `100k`.
        benchmarks: for contamination, names of benchmarks or folders of their rows.
        reference_model: for contamination, the model that Min-K% probability is compared with.
        batch_size: sequences at once; fixed, since scores move with it.
        reduce_shots: give fewer solved examples where they do not fit the model's window, instead of refusing.
        engine: `auto`, `transformers`, `llamacpp` or a URL.
        out: a new folder for the report as a page, as Markdown and JSON, with every row's answer.
        overwrite: replace it if it exists.
        update_card: write the results into the model card, MODEL/README.md, as the Hub's `model-index`.
        device: where a checkpoint runs; the CPU by default.
        dtype: what a checkpoint is computed in; its own by default.
        drop: a layer plan: the deepened model is judged without being written. So are the following.
        layers: see `deepen plan`.
        repeat: see `deepen plan`.
        expand: see `deepen plan`.
        plan: see `deepen plan`.
        identity_init: see `deepen plan`.

    Returns:
        The report; `report.tasks["perplexity"]["value"]` is the perplexity.

    Raises:
        DataError: the data is missing, empty, not UTF-8, or too short; or lacks a column.
        OptionError: an option out of its range, one that the suite does not take, or an unknown suite or task.
        OutputError: `out` exists already.
        CheckpointError, UnsupportedModelError, PlanError: as `deepen.load`.
    """
    start = time.monotonic()
    others = [compare] if isinstance(compare, str | Path) else list(compare)
    chosen = {"drop": drop, "layers": layers, "repeat": repeat, "expand": expand, "plan": plan}
    options: dict[str, Any] = {key: value for key, value in chosen.items() if value is not None}
    if identity_init:
        options["identity_init"] = True
    job = prepare(
        suite, tasks, data, limit=limit, compare=tuple(others), reference=reference, window=window, stride=stride,
        tokens=None if tokens is None else parse_count(tokens), benchmarks=_several(benchmarks),
        reference_model=reference_model, batch_size=batch_size, reduce_shots=reduce_shots,
        engine=None if engine == "auto" else engine, device=device, dtype=dtype,
        plan=options or None,
    )  # fmt: skip
    rows = None if reference is None else published(reference)
    if out is not None:
        out = check_target(out, overwrite=overwrite)
    if update_card:
        _check_card(model, options)
    for each in others:
        resolve(each)
    with open_meter() as meter:
        own = measure(model, job, options or None)
        found = {_unlike(str(each), others[:place]): measure(each, job, None) for place, each in enumerate(others)}
        joules = meter.joules()
    value, low, high = _average(own.tasks)
    report = Report(
        model=str(model),
        suite=job.suite,
        tasks={name: task.to_dict() for name, task in own.tasks.items()},
        average=value,
        seconds=round(time.monotonic() - start, 3),
        energy_joules=joules,
        versions=versions() | _harness_version(own),
        average_low=low,
        average_high=high,
        plan=options or None,
        limit=limit,
        notes=tuple(dict.fromkeys(note for each in (own, *found.values()) for note in each.notes)),
        comparisons={name: _compared(own, other, averaged=job.suite != "bias") for name, other in found.items()},
        reference=None if rows is None else {"label": LABEL, "columns": list(TASKS), "rows": [row.to_dict() for row in rows]},
        results=own.tasks,
        others={name: other.tasks for name, other in found.items()},
        lm_eval=own.lm_eval,
    )
    if out is not None:
        from deepen.evaluate.report import write_report

        write_report(report, Path(out), overwrite=overwrite)
    if update_card:
        from deepen.evaluate.card import update

        update(Path(model), report)
    return report


def _compared(own: Measured, other: Measured, *, averaged: bool) -> dict[str, Comparison]:
    if own.scores is None or other.scores is None:
        return compare(own.tasks, other.tasks, averaged=averaged)
    return {name: compare_perplexity(task, other.tasks[name], own.scores, other.scores) for name, task in own.tasks.items()}


def _average(tasks: Mapping[str, TaskResult]) -> tuple[float, float | None, float | None]:
    """The mean over tasks, and its interval from their standard errors: tasks are independent of each other."""
    values = list(tasks.values())
    if len(values) == 1:
        return values[0].value, values[0].low, values[0].high
    value = mean([task.value for task in values])
    errors = [task.stderr for task in values]
    if None in errors:
        return value, None, None
    error = math.sqrt(math.fsum(each**2 for each in errors if each is not None)) / len(errors)
    return value, value - _Z * error, value + _Z * error


def _check_card(model: str | Path, plan: Mapping[str, Any]) -> None:
    if plan or not Path(model).is_dir():
        what = "the deepened model is not written anywhere" if plan else "only the card of a checkpoint folder can be updated"
        raise OptionError(what, where="--update-card", next="write the model with `deepen scale` and judge that, or use --out")


def _several(data: Paths | None) -> tuple[str | Path, ...] | None:
    return None if data is None else (data,) if isinstance(data, str | Path) else tuple(data)


def _unlike(name: str, before: Sequence[str | Path]) -> str:
    """A name that no model before has."""
    same = [str(each) for each in before].count(name)
    return f"{name} ({same + 1})" if same else name


def _harness_version(measured: Measured) -> dict[str, str]:
    number = measured.lm_eval.get("lm_eval_version")
    return {} if number is None else {"lm-eval": str(number)}


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


__all__ = ["Job", "Report", "evaluate"]
