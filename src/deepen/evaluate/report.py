"""The report of an evaluation as a folder: a page, Markdown, JSON, every row's answer, and lm-eval's own results."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from deepen.checkpoint.card import escape_markdown
from deepen.evaluate import words
from deepen.evaluate.card import model_index
from deepen.evaluate.published import TASKS
from deepen.evaluate.results import Item, TaskResult
from deepen.evaluate.tasks import evenly_spaced
from deepen.evaluate.words import TITLES, Table, amount
from deepen.output import new_folder
from deepen.report.bias import bias_chart
from deepen.report.charts import Bar, bars, draw_bars, radar
from deepen.report.page import Html, element, facts, figure, fold, page, section, table
from deepen.units import format_energy, format_seconds

if TYPE_CHECKING:
    from deepen.evaluate import Report

_SAMPLES = 5  # right ones and wrong ones of each task, on the page
_LONGEST = 2000  # characters of a text there
_SUMMARY = 100
_AXES = 3  # the fewest that make a radar
_RIGHT = 0.5


def write_report(report: Report, out: Path, *, overwrite: bool = False) -> None:
    """Write a report as a new folder, which appears when it is complete.

    `report.html`, `report.md` and `report.json` say the same; `results.json` is lm-eval's own, where it was used; `samples/`
    has a line for each row and model; `model-index.yaml` is for a model card; `results.png` is the chart, and
    `bias.png` that of bias by category.

    Raises:
        OutputError: the folder exists already, or cannot be written.
    """
    with new_folder(out, overwrite=overwrite) as folder:
        _write_json(folder / "report.json", report.to_dict())
        (folder / "report.md").write_text(markdown(report), encoding="utf-8")
        picture = _draw_bias(report, folder / "bias.png") if report.suite == "bias" else None
        (folder / "report.html").write_text(html(report, picture), encoding="utf-8")
        index = yaml.safe_dump({"model-index": model_index(report)}, sort_keys=False, allow_unicode=True)
        (folder / "model-index.yaml").write_text(index, encoding="utf-8")
        if report.lm_eval:
            _write_json(folder / "results.json", report.lm_eval)
        for groups, scale, unit in _charts(report)[:1]:
            draw_bars(folder / "results.png", groups, scale=scale, quantity="per cent" if unit else "perplexity")
        for name in report.results:
            file = folder / "samples" / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}.jsonl"
            file.parent.mkdir(exist_ok=True)
            with file.open("w", encoding="utf-8") as lines:
                for line in _lines(report, name):
                    lines.write(json.dumps(_finite(line), default=str) + "\n")


def markdown(report: Report) -> str:
    """The tables and notes, as Markdown; nothing in a name can become markup."""
    parts = [f"# {escape_markdown(report.name)}", _lead(report)]
    for shown in _tables(report):
        head = [*shown.header], ["---"] * len(shown.header)
        lines = ["| " + " | ".join(map(escape_markdown, line)) + " |" for line in (head[0], *shown.rows)]
        lines.insert(1, "| " + " | ".join(head[1]) + " |")
        parts += [escape_markdown(shown.about) + ":", "\n".join(lines)]
    parts += ["\n".join(f"- {escape_markdown(note)}" for note in words.notes(report))] if words.notes(report) else []
    parts += ["\n".join(f"- {escape_markdown(name)}: {escape_markdown(value)}" for name, value in _conditions(report))]
    return "\n\n".join(parts) + "\n"


def html(report: Report, bias: bytes | None = None) -> str:
    """The page.

    Args:
        report: what it shows.
        bias: the chart of the categories of bias, as PNG.
    """
    sections = [section("Results", *_results(report))]
    if bias is not None:
        sections.append(section("By category", *_categories(report, bias)))
    for other in report.comparisons:
        shown = words.comparison_table(report, other)
        rows = [(*row[:-1], element("span", row[-1], class_=row[-1] if " " not in row[-1] else None)) for row in shown.rows]
        sections.append(section(f"Against {other}", _table(shown._replace(about=words.PAIRED, rows=rows))))
    if report.comparisons:
        sections.append(element("p", _VERDICTS, class_="soft"))
    if report.reference is not None:
        shown = words.reference_table(report)
        sections.append(section("Beside published rows", _table(shown, marked=(0,))))
    if matches := words.match_tables(report):
        sections.append(section("Rows that match", *map(_table, matches)))
    samples = [fold(name, *found) for name, task in report.results.items() if (found := list(_samples(task)))]
    if samples:
        about = "Rows that the model answered rightly and wrongly, evenly spaced over the task."
        sections.append(section("Samples", element("p", about, class_="soft"), *samples))
    sections.append(section("How it was measured", facts(_conditions(report))))
    return page(report.name, sections, about=_lead(report))


_VERDICTS = (
    "A verdict other than “cannot tell” needs a 95 % interval without zero; for rows that are right or wrong also p < 0.05 in "
    "McNemar's exact test. Several tasks are several chances to be wrong: of twenty, one verdict may be chance."
)


def _tables(report: Report) -> list[Table]:
    found = [words.results_table(report), *(words.comparison_table(report, other) for other in report.comparisons)]
    found += words.match_tables(report)
    return [*found, words.reference_table(report)] if report.reference is not None else found


def _results(report: Report) -> Iterator[Html]:
    for groups, scale, unit in _charts(report):
        about = "; ".join(f"{task}: " + ", ".join(f"{bar.name} {bar.text}" for bar in group) for task, group in groups.items())
        yield figure(bars(groups, scale=scale, unit=unit, about=about), "The lines at the ends of the bars are 95 % intervals.")
    yield _table(words.results_table(report)._replace(about="The same in numbers"))
    axes = [name for name in TASKS if name in report.results]
    if len(axes) >= _AXES:
        models = {name: [tasks[axis].value for axis in axes] for name, tasks in _models(report).items()}
        about = "; ".join(f"{name}: " + ", ".join(f"{value:.1%}" for value in values) for name, values in models.items())
        yield figure(radar([TITLES[axis] for axis in axes], models, about=about), "From 0 at the centre to 100 % at the rim.")
    if words.notes(report):
        yield element("ul", *(element("li", note) for note in words.notes(report)))


def _draw_bias(report: Report, file: Path) -> bytes:
    bias_chart(file, {name: task.facts["categories"] for name, task in report.results.items()})
    return file.read_bytes()


def _categories(report: Report, picture: bytes) -> Iterator[Html]:
    source = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    yield figure(element("img", src=source, alt="The values of the tables below, as bars."), "Pale bars may be chance.")
    for name, task in report.results.items():
        rows = [
            (category, amount(task, each["value"]), words.interval(task, each["low"], each["high"]), f"{each['n']:,}")
            for category, each in task.facts["categories"].items()
        ]
        yield table(("category", "value", "95 % interval", "rows"), rows, caption=name, numbers=(1, 2, 3))


def _table(shown: Table, marked: Sequence[int] = ()) -> Html:
    plain = [[cell for cell in column if cell] for column in zip(*shown.rows, strict=True)]
    numbers = [
        place
        for place, column in enumerate(plain)
        if all(cell[:1] in "+-<0123456789" and not isinstance(cell, Html) for cell in column)
    ]
    return table(shown.header, shown.rows, caption=shown.about, numbers=numbers, marked=marked)


def _models(report: Report) -> dict[str, Mapping[str, TaskResult]]:
    """The judged model first; one that is compared with itself gets another name the second time."""
    others = {name if name != report.name else f"{name} (again)": tasks for name, tasks in report.others.items()}
    return {report.name: report.results, **others}


def _charts(report: Report) -> list[tuple[dict[str, list[Bar]], float, str]]:
    """Fractions on an axis up to 100 %; other values on one of their own (those of a bias are in its own picture).

    Returns:
        Bars with the axis' end and its unit.
    """
    found = []
    for fractions in (True,) if report.suite == "bias" else (True, False):
        names = [name for name, task in report.results.items() if task.is_fraction == fractions]
        groups = {name: [_bar(model, tasks[name]) for model, tasks in _models(report).items()] for name in names}
        ends = [max(bar.value, bar.high or 0.0) for group in groups.values() for bar in group]
        if names and max(ends) > 0:
            found.append((groups, 100.0, "%") if fractions else (groups, _round_up(max(ends)), ""))
    return found


def _round_up(value: float) -> float:
    """The end of an axis of four parts."""
    unit = 10 ** math.floor(math.log10(value))
    return float(next(step * unit for step in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10) if step * unit >= value))


def _bar(name: str, task: TaskResult) -> Bar:
    scale = 100 if task.is_fraction else 1
    low, high = (None if end is None else scale * end for end in (task.low, task.high))
    return Bar(name, scale * task.value, low, high, amount(task, task.value))


def _samples(task: TaskResult) -> Iterator[Html]:
    known = [item for item in task.items if "question" in item.facts]
    for label, chosen in (
        ("wrong", [item for item in known if item.score < _RIGHT]),
        ("right", [item for item in known if item.score >= _RIGHT]),
    ):
        for place in evenly_spaced(len(chosen), _SAMPLES):
            yield _sample(label, chosen[place])


def _sample(label: str, item: Item) -> Html:
    question = str(item.facts["question"])
    last = (question.strip().splitlines() or [""])[-1]
    kind = "worse" if label == "wrong" else "better"
    choices = item.facts.get("choices")
    parts = [element("pre", _cut(question))]
    if isinstance(choices, list):
        likelihoods = item.facts.get("log_likelihoods", [])
        rows = [(_cut(str(choice)), f"{value:.2f}") for choice, value in zip(choices, likelihoods, strict=False)]
        parts.append(table(("choice", "log-likelihood"), rows, caption="What it chose from", numbers=(1,)))
    pairs = [("its answer", item.facts.get("answer")), ("the right one", item.facts.get("target")), ("row", item.key)]
    parts.append(facts([(name, _cut(str(value))) for name, value in pairs if value is not None]))
    return fold(element("span", element("span", label, class_=kind), f" · {last[-_SUMMARY:]}"), *parts)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"…{text[-_LONGEST:]}"


def _lead(report: Report) -> str:
    limit = "" if report.limit is None else f", at most {report.limit:,} of each, evenly spaced"
    return f"Suite {report.suite}{limit}; measured by deepen {report.versions.get('deepen', '')}"


def _conditions(report: Report) -> list[tuple[str, str]]:
    joules = "not measured" if report.energy_joules is None else format_energy(report.energy_joules)
    tasks = ", ".join(f"{name} {task.version}" for name, task in report.results.items())
    return [
        ("time", format_seconds(report.seconds)),
        ("energy", joules),
        ("versions of tasks", tasks),
        ("versions of packages", ", ".join(f"{name} {number}" for name, number in report.versions.items())),
    ]


def _lines(report: Report, name: str) -> Iterator[dict[str, Any]]:
    for model, tasks in _models(report).items():
        for item in tasks[name].items:
            yield {"model": model, "task": name, "key": item.key, "score": item.score, **item.facts}


def _write_json(file: Path, content: object) -> None:
    file.write_text(json.dumps(_finite(content), indent=2, default=str) + "\n", encoding="utf-8")


def _finite(value: object) -> object:
    """JSON has no numbers that are not finite."""
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
