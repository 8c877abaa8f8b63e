"""One report of a whole run: what was made, what it is worth, what it took, and how to do it again."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from deepen.checkpoint.card import draw_layers
from deepen.checkpoint.manifest import versions
from deepen.energy import carbon_grams
from deepen.output import storage_errors, write_file
from deepen.pipeline.account import Told, names_of
from deepen.plan import parse_plan
from deepen.recipe import Recipe
from deepen.report.blocks import Block, Code, Drawing, Section, Table, Text, to_html, to_markdown
from deepen.report.charts import Bar, bars
from deepen.report.lines import layer_plan, lines
from deepen.units import format_bytes, format_count, format_energy, format_grams, format_seconds

HTML_FILE, MARKDOWN_FILE = "report.html", "report.md"
GRID_FACTOR = 480.0
"""Grams of CO2 per kWh where nothing else is said: the world's average of 2023 (Ember, Global Electricity Review 2024)."""

_TRAINING = {"pretrain": "Healing", "instruct": "Instruction tuning", "align": "Alignment"}
_SIGNED = ("bias_score", "diff")  # metrics that may be below zero
_LOSSES = {"loss, learned": "loss", "loss, held out": "validation_loss"}
_ACCURACIES = {"reward accuracy, learned": "reward_accuracy", "reward accuracy, held out": "validation_reward_accuracy"}


def write_report(
    words: Recipe, told: Sequence[Told], folder: Path, *, recipe: Path, overrides: Sequence[str], grid_factor: float
) -> list[str]:
    """Write `report.html` and `report.md` into a run's folder, unless they tell of these very stages already.

    Args:
        words: the recipe.
        told: its finished stages.
        folder: of the run.
        recipe: the recipe's file.
        overrides: what was set besides.
        grid_factor: grams of CO2 per kWh.

    Returns:
        The two files.
    """
    files = [folder / HTML_FILE, folder / MARKDOWN_FILE]
    content = [[each.record.get("key"), each.record.get("output"), each.record.get("adopted")] for each in told]
    facts = [content, grid_factor, versions(), list(overrides)]
    mark = f"<!-- {hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()} -->\n"
    if not all(file.is_file() and file.read_text(encoding="utf-8").endswith(mark) for file in files):
        sections = list(_sections(words, told, recipe, overrides, grid_factor))
        title = f"{words.name}: what was made, and what it is worth"
        about = f"From {words.base}, by {len(told)} stages, {date.today().isoformat()}. {_lead(told)}"
        with storage_errors(folder / HTML_FILE):
            for file, write in zip(files, (to_html, to_markdown), strict=True):
                write_file(file, write(title, about, sections) + mark)
    return [str(file) for file in files]


def _lead(told: Sequence[Told]) -> str:
    """The sentence that most want to read."""
    models = [each for each in told if each.step.stage.makes_model and each.verb != "export"]
    if not models:
        return ""
    last = models[-1]
    size = format_count(last.model["parameters"])
    return f"The last model, {last.name}, has {last.model['layers']} layers and {size} parameters."


def _sections(
    words: Recipe, told: Sequence[Told], recipe: Path, overrides: Sequence[str], grid_factor: float
) -> Iterator[Section]:
    names = names_of(words.base, [each.step for each in told])
    yield Section("Stages", [_stages(told)])
    yield Section("Layer plans", [block for each in told for block in _plan(each)])
    for verb, heading in _TRAINING.items():
        yield Section(heading, [block for each in told if each.verb == verb for block in _training(each)])
    yield Section("Merges", [_merge(each, names) for each in told if each.verb == "merge" and each.manifest])
    judged = [each for each in told if each.verb == "evaluate"]
    yield Section("Evaluation", [b for each in judged if _suite(each) != "bias" for b in _evaluation(each, names)])
    yield Section("Bias", [b for each in judged if _suite(each) == "bias" for b in _evaluation(each, names)])
    yield Section("Samples, before and after", list(_samples(told, names)))
    yield Section("Energy and CO₂", list(_energy(told, grid_factor)))
    yield Section("Do it again", list(_commands(words, told, recipe, overrides)))
    yield Section("Versions and hashes", list(_provenance(told)))


def _stages(told: Sequence[Told]) -> Table:
    rows = [
        (
            each.name,
            each.verb,
            str(each.model["layers"]),
            format_count(each.model["parameters"]),
            format_bytes(each.model["bytes"]),
            format_seconds(each.record["seconds"]),
            "edited by hand, adopted" if each.record.get("adopted") else "",
        )
        for each in told
    ]
    return Table(
        "What each stage made or judged", ("stage", "verb", "layers", "parameters", "size", "time", ""), rows, range(2, 6)
    )


def _plan(each: Told) -> Iterator[Block]:
    plan = each.manifest.get("plan")
    if each.verb != "scale" or not plan:
        return
    source = plan["source_layers"]
    layers = parse_plan(source, layers=plan["layers"]).layers
    if len(layers) == source:
        return  # a copy, such as a GGUF decoded
    identity = plan.get("identity", ())
    note = f"; {len(identity)} layers start as the identity, and are drawn lighter" if identity else ""
    caption = f"{each.name}: {source} layers become {len(layers)} ({plan['layers']}){note}"
    yield Drawing(layer_plan(source, layers, identity, about=caption), caption)
    yield Code(draw_layers(source, layers, identity), "The same as text")


def _training(each: Told) -> Iterator[Block]:
    results = each.manifest.get("results", {})
    level = results.get("base_validation_perplexity")
    if each.verb == "pretrain":
        curves = {each.name: each.curve("validation_perplexity")}
        if beside := each.curve("validation_perplexity", "control"):
            curves["control: the base on the same data"] = beside
        yield from _chart(each, curves, "perplexity on held-out text", level=("the base", level) if level else None)
    else:
        yield from _chart(each, {name: each.curve(key) for name, key in _LOSSES.items()}, "loss per token")
    if each.verb == "align":
        yield from _chart(each, {name: each.curve(key) for name, key in _ACCURACIES.items()}, "reward accuracy")
        yield from _chunks(each, results.get("chunks", ()))
    facts = {
        "steps": results.get("steps"),
        "tokens": results.get("tokens"),
        "parameters that learned": results.get("learned_parameters"),
    }
    told = [f"{name} {value:,}" for name, value in facts.items() if value is not None]
    recovered = results.get("recovery") or {}
    if each.verb == "pretrain" and recovered.get("recovered"):
        told.append(f"back at the base's level after {recovered['recovery_tokens']:,} tokens")
    yield Text(f"{each.name}: {', '.join(told)}.")


def _chart(
    each: Told, curves: Mapping[str, Sequence[tuple[float, float]]], what: str, level: tuple[str, float] | None = None
) -> Iterator[Drawing]:
    drawn = {name: points for name, points in curves.items() if any(math.isfinite(value) for _, value in points)}
    if drawn:
        ends = "; ".join(f"{name} {points[0][1]:.4g} → {points[-1][1]:.4g}" for name, points in drawn.items())
        caption = f"{each.name}: {what} against tokens. {ends}" + (f"; the base has {level[1]:.4g}" if level else "")
        pictures = [
            f"{each.step.out.name}/{name}" for name in ("recovery.png", "training.png") if (each.step.out / name).is_file()
        ]
        yield Drawing(lines(drawn, about=caption, level=level), caption, pictures[0] if pictures else None)


def _chunks(each: Told, chunks: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    rows = [
        (
            " + ".join(Path(name).name for name in chunk["data"].split(" + ")),
            f"{chunk['pairs']:,}",
            f"{chunk['start_reward_accuracy']:.2f}",
            f"{chunk['reward_accuracy']:.2f}",
            f"{chunk['reward_margin']:.3f}",
        )
        for chunk in chunks
    ]
    if rows:
        header = ("step", "pairs", "accuracy at the start", "reward accuracy", "reward margin")
        yield Table(f"{each.name}, step by step", header, rows, range(1, 5))


def _merge(each: Told, names: Mapping[str, str]) -> Table:
    options = each.manifest["options"]
    method = options.get("method", "average") + (f", t = {options['t']}" if options.get("method") == "slerp" else "")
    models = each.manifest["source"]["models"]
    rows = [(names.get(model["model"], model["model"]), _number(model.get("weight"))) for model in models]
    return Table(f"{each.name}: {method}", ("model", "weight"), rows, (1,))


def _suite(each: Told) -> str:
    return str(each.result.get("suite", ""))


def _evaluation(each: Told, names: Mapping[str, str]) -> Iterator[Block]:
    result = each.result
    models = {str(result["model"]): result["tasks"], **result.get("models", {})}
    shown = {names.get(model, model): tasks for model, tasks in models.items()}
    for scale, unit, tasks in _scales(result["tasks"]):
        groups = {task: [_bar(name, found[task], scale) for name, found in shown.items() if task in found] for task in tasks}
        top = 100.0 if unit else _above(max(bar.high or bar.value for group in groups.values() for bar in group))
        caption = f"{each.name}: {', '.join(tasks)}, with 95 % intervals"
        yield Drawing(bars(groups, scale=top, unit=unit, about=caption), caption)
    rows = [
        (f"{task}, {name}", found[task]["metric"], *_interval(found[task]), f"{found[task]['n']:,}")
        for task in result["tasks"]
        for name, found in shown.items()
        if task in found
    ]
    yield Table(f"{each.name}: all values", ("task, model", "metric", "value", "95 % interval", "n"), rows, (2, 3, 4))
    verdicts = [
        (
            f"{task}, against {names.get(other, other)}",
            found["verdict"],
            f"{found['difference']:+.4f} {found['unit']}",
            "" if found["low"] is None else f"{found['low']:+.4f} to {found['high']:+.4f}",
        )
        for other, tasks in result.get("comparisons", {}).items()
        for task, found in tasks.items()
    ]
    if verdicts:
        header = ("task", "verdict", "difference", "95 % interval")
        yield Table(f"{each.name}: {names.get(str(result['model']), '')} compared on the same rows", header, verdicts, (2, 3))
    if result.get("limit"):
        yield Text(f"{each.name}: only {result['limit']} rows of each task were asked.")
    for note in result.get("notes", ()):
        yield Text(note)


def _scales(tasks: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[float, str, list[str]]]:
    """Tasks that one axis can show: shares in per cent, and others one by one; what has negative ends stays in the table."""
    tasks = {
        name: task
        for name, task in tasks.items()
        if not any(word in task["metric"] for word in _SIGNED)
        and math.isfinite(task["value"])
        and math.isfinite(task["high"] or 0)
    }
    shares = [name for name, task in tasks.items() if _is_share(task)]
    if shares:
        yield 100.0, " %", shares
    yield from (
        (1.0, "", [name]) for name, task in tasks.items() if name not in shares and min(task["value"], task["low"] or 0) >= 0
    )


def _is_share(task: Mapping[str, Any]) -> bool:
    known = [task[key] for key in ("value", "low", "high") if task[key] is not None]
    return "perplexity" not in task["metric"] and "bits" not in task["metric"] and all(0 <= value <= 1 for value in known)


def _bar(name: str, task: Mapping[str, Any], scale: float) -> Bar:
    low, high = (None if task[key] is None else scale * task[key] for key in ("low", "high"))
    return Bar(name, scale * task["value"], low, high, f"{scale * task['value']:.4g}")


def _interval(task: Mapping[str, Any]) -> tuple[str, str]:
    return f"{task['value']:.4g}", "" if task["low"] is None else f"{task['low']:.4g} to {task['high']:.4g}"


def _above(value: float) -> float:
    """The next number above that an axis divides well into quarters."""
    step = 10.0 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return next(factor * step for factor in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10, 12) if factor * step >= value)


def _samples(told: Sequence[Told], names: Mapping[str, str]) -> Iterator[Block]:
    asked: dict[str, list[tuple[str, str]]] = {}
    for each in told:
        if each.verb == "generate" and each.result:
            answer = (names.get(each.step.source, each.step.source), each.result["text"].strip())
            asked.setdefault(str(each.step.options["prompt"]), []).append(answer)
    for prompt, answers in asked.items():
        yield Table(f"“{prompt}”", ("model", "answer"), answers)


def _energy(told: Sequence[Told], grid_factor: float) -> Iterator[Block]:
    measured = {each.name: each.joules for each in told if each.joules is not None}
    if measured:
        rows = [
            (name, format_energy(joules), format_grams(carbon_grams(joules, grid_factor) or 0.0))
            for name, joules in [*measured.items(), ("all of these", sum(measured.values()))]
        ]
        yield Table("Energy by the hardware's own counters", ("stage", "energy", "CO₂"), rows, (1, 2))
    missing = [each for each in told if each.name not in measured]
    if missing:
        seconds = sum(each.record["seconds"] for each in missing)
        how = {each.manifest.get("results", {}).get("energy_method") for each in missing} - {None}
        why = f" ({'; '.join(sorted(str(each).removeprefix('not measured: ') for each in how))})" if how else ""
        yield Text(f"Not measured{why}: {', '.join(each.name for each in missing)}, {format_seconds(seconds)} in all.")
    assumed = " It is the world's average of 2023 (Ember)." if grid_factor == GRID_FACTOR else ""
    yield Text(f"Assumed: {grid_factor:g} g of CO₂ per kWh.{assumed} Another: deepen run … --grid-factor G")


def _commands(words: Recipe, told: Sequence[Told], recipe: Path, overrides: Sequence[str]) -> Iterator[Block]:
    sets = [word for each in overrides for word in ("--set", each)]
    yield Code(shlex.join(["deepen", "run", os.fspath(recipe), *sets]))
    yield Code("\n".join(each.step.command for each in told), "The same, stage by stage")
    if recipe.is_file():
        yield Code(recipe.read_text(encoding="utf-8"), f"The recipe {words.name}")


def _provenance(told: Sequence[Told]) -> Iterator[Block]:
    yield Table("Versions", ("package", "version"), list(versions().items()))
    rows = [
        (each.name, each.record.get("output") or "", str(each.manifest.get("manifest_sha256", "")), str(each.record["key"]))
        for each in told
    ]
    header = ("stage", "output", "manifest", "inputs and options")
    yield Table("SHA-256 of what each stage left, of its manifest, and of what decided it", header, rows)
    made = [each for each in told if each.manifest and each.step.out.is_dir()]
    if made:
        yield Text("This walks the manifests of the last model back to the base, and hashes every tensor again:")
        yield Code(shlex.join(["deepen", "verify", str(made[-1].step.out)]))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"
