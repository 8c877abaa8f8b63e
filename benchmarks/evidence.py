"""Does depth pay? A model deepened in three ways, and not at all, on the same tokens and on the same FLOPs.

    python benchmarks/evidence.py BASE --train TRAIN.txt --validation VALID.txt --eval DIR --tokens 1M --seeds 3 --limit 50
    python benchmarks/evidence.py BASE --train TRAIN.txt --validation VALID.txt --tokens 2k --seeds 1     # shows that it works

trains, from the same base and with each seed in the same order of data:

- SOLAR's plan (`--drop M`) and the plan that `deepen explore` finds for as many layers, both plain copies;
- identity blocks (`--expand K`), LLaMA Pro's start: they compute nothing until they have learned;
- the base itself on as many tokens, and once more on as many FLOPs, which is more tokens: the controls.

All weights learn, at a constant rate after a warm-up. Each is judged on the held-out text and, with `--eval`, on H6's tasks. A
finished run is kept in the work folder and not run again, and an interrupted one goes on with the same command. The result goes
to `benchmarks/results/evidence-NAME-DATE.{json,md}`, and as a page with a chart to `--page`, docs/results.md unless given.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from statistics import mean
from typing import Any

import deepen
from deepen.doctor import doctor
from deepen.evaluate.tasks import SUITES
from deepen.output import write_file
from deepen.plan import read_planned
from deepen.plan.estimate import planned, training_flops
from deepen.train.metrics import METRICS_FILE, read_rows
from deepen.units import format_count, parse_count

HERE = Path(__file__).parent
MEASUREMENTS = 6  # of the held-out text in a run, the first and the last included
CONTROLS = ("same tokens", "same FLOPs")
COLORS = {"solar": "tab:red", "searched": "tab:orange", "identity": "tab:blue", "same tokens": "gray", "same FLOPs": "black"}


def variants(layers: int, drop: int, found: Mapping[str, Any]) -> dict[str, tuple[str, dict[str, Any] | None]]:
    """Name, label and layer plan of each; no plan for the base."""
    added = layers - 2 * drop
    return {
        "solar": (f"SOLAR's plan (--drop {drop})", {"drop": drop}),
        "searched": (f"searched plan (--layers {found['layers']})", {"layers": found["layers"]}),
        "identity": (f"identity blocks (--expand {added})", {"expand": added}),
        "same tokens": ("control: the base, same tokens", None),
        "same FLOPs": ("control: the base, same FLOPs", None),
    }


def search(options: argparse.Namespace, added: int) -> dict[str, Any]:
    """The best block to repeat, of as many layers, on the training text before any training; kept in the work folder."""
    found = options.work / "search"
    if not found.exists():
        deepen.explore(
            options.base, data=options.train, out=found, add=added, kinds=("repeat", "drop"), tokens=options.search_tokens,
            window=min(256, options.sequence_length), device=options.device,
        )  # fmt: skip
    plans = json.loads((found / "plans.json").read_text(encoding="utf-8"))["plans"]
    best: dict[str, Any] = next(plan for plan in plans if plan["added"] == added)
    return best


def flops_of(base: Path, plan: Mapping[str, Any] | None, length: int) -> int:
    """FLOPs of training on a token, all weights learning."""
    flops, _ = training_flops(*planned(*read_planned(base, **plan or {})), length)
    return flops


def run(name: str, seed: int, tokens: int, plan: Mapping[str, Any] | None, options: argparse.Namespace) -> dict[str, Any]:
    """Make, train and judge one model, unless that is done; what is kept of it are its numbers."""
    kept = options.work / f"{name.replace(' ', '-')}-{seed}.json"
    if kept.exists():
        done: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        return done
    start, out = kept.with_suffix(".start"), kept.with_suffix("")
    if plan and not start.exists() and not out.exists():
        deepen.scale(options.base, start, **plan)
    steps = tokens // options.batch_tokens
    if not out.exists():
        deepen.pretrain(
            start if plan else options.base, out, data=options.train, validation=options.validation,
            validation_tokens=options.validation_tokens, tokens=steps * options.batch_tokens,
            sequence_length=options.sequence_length, batch_tokens=options.batch_tokens, learning_rate=options.learning_rate,
            schedule="constant", warmup=max(1, min(20, steps // 10)), every=max(1, round(steps / (MEASUREMENTS - 1))),
            save_every=max(1, steps // 4), seed=seed, device=options.device,
        )  # fmt: skip
    rows = list(read_rows(out / METRICS_FILE))
    joules = [row["energy_joules"] for row in rows if row.get("energy_joules") is not None]
    result = {
        "name": name,
        "seed": seed,
        "tokens": steps * options.batch_tokens,
        "curve": {str(row["step"] * options.batch_tokens): row["validation_loss"] for row in rows if "validation_loss" in row},
        "seconds": sum(row["seconds"] for row in rows if "loss" in row),
        "energy_joules": sum(joules) if joules else None,
        "scores": judge(out, options),
    }
    write_file(kept, json.dumps(result, indent=1))
    for folder in (start, out):
        shutil.rmtree(folder, ignore_errors=True)
    return result


def judge(model: Path, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The benchmarks, each with its interval; nothing without `--eval`."""
    if options.eval is None:
        return {}
    report = deepen.evaluate(
        model, tasks=options.tasks, data=options.eval, limit=options.limit, reduce_shots=True, device=options.device
    )
    return {name: {key: task[key] for key in ("value", "low", "high", "n")} for name, task in report.to_dict()["tasks"].items()}


def summary(options: argparse.Namespace) -> dict[str, Any]:
    """Do what is missing, and put all of it together."""
    layers = read_planned(options.base)[0].num_hidden_layers
    options.work.mkdir(parents=True, exist_ok=True)
    plans = variants(layers, options.drop, search(options, layers - 2 * options.drop))
    flops = {name: flops_of(options.base, plan, options.sequence_length) for name, (_, plan) in plans.items()}
    tokens = dict.fromkeys(plans, options.tokens)
    tokens["same FLOPs"] = round(options.tokens * flops["solar"] / flops["same FLOPs"])
    runs = [run(name, seed, tokens[name], plan, options) for seed in range(options.seeds) for name, (_, plan) in plans.items()]
    untrained = judge(options.base, options)
    machine = doctor()
    ends = {
        name: [list(each["curve"].values())[-1] for each in runs if each["name"] == name] for name in plans
    }  # nats per token by seed
    return {
        "date": date.today().isoformat(),
        "machine": {
            "cpu": machine["cpu"]["model"],
            "cores": machine["cpu"]["cores"],
            "gpus": [gpu["name"] for gpu in machine["gpus"]],
            "versions": {name: machine["versions"][name] for name in ("deepen", "torch", "transformers")},
        },
        "settings": {
            key: getattr(options, key)
            for key in ("tokens", "seeds", "limit", "sequence_length", "batch_tokens", "learning_rate", "validation_tokens")
        },
        "model": options.base.name,
        "texts": [options.train.name, options.validation.name],
        "labels": {name: label for name, (label, _) in plans.items()},
        "flops_per_token": flops,
        "runs": runs,
        "base_scores": untrained,
        "against": {
            name: {control: [one - other for one, other in zip(ends[name], ends[control], strict=True)] for control in CONTROLS}
            for name in plans
            if name not in CONTROLS
        },
        "seconds": sum(each["seconds"] for each in runs),
    }


def report(result: dict[str, Any], chart: str) -> str:
    """The page: what was asked, the numbers, and what they say."""
    settings, machine, runs = result["settings"], result["machine"], result["runs"]
    where = ", ".join(machine["gpus"]) or f"{machine['cpu']}, {machine['cores']} cores"
    lines = [
        "# Does depth pay?\n",
        f"{result['model']}, deepened in three ways and not at all, each trained on {format_count(settings['tokens'])} tokens"
        f" of {result['texts'][0]} with {count(settings['seeds'], 'order')} of the data, and judged on text that none has seen"
        f" ({result['texts'][1]}). The base is trained twice: on the same tokens, and on the same FLOPs, which is more tokens."
        " All weights learn.\n",
        f"![Held-out perplexity of all runs by the FLOPs they took]({chart})\n",
        "## Held-out text\n",
        "| | FLOPs per token | tokens | perplexity before | after, mean of the orders | each |",
        "|---|---|---|---|---|---|",
    ]
    for name, label in result["labels"].items():
        own = [each for each in runs if each["name"] == name]
        ends = [last(each) for each in own]
        lines.append(
            f"| {label} | {format_count(result['flops_per_token'][name])} | {own[0]['tokens']:,} | {first(own[0]):.2f} |"
            f" {mean(ends):.2f} | {', '.join(f'{each:.2f}' for each in ends)} |"
        )
    lines += ["\n## What it says\n", *(f"- {line}" for line in verdicts(result))]
    if result["base_scores"]:
        lines += ["\n## Benchmarks\n", *benchmark_table(result)]
    lines += [
        "\n## How it was made\n",
        f"`python benchmarks/evidence.py` on {result['date']}: {where};"
        f" {', '.join(f'{name} {version}' for name, version in machine['versions'].items())}."
        f" {', '.join(f'{key} {value}' for key, value in settings.items() if value is not None)}; constant rate;"
        f" {result['seconds'] / 60:.0f} minutes of training steps. What the search for a plan took is not counted.",
    ]
    return "\n".join(lines) + "\n"


def verdicts(result: dict[str, Any]) -> list[str]:
    """For each way to deepen whether it is ahead of the controls; never of one order of the data alone."""
    lines = []
    for name, others in result["against"].items():
        label = result["labels"][name]
        for control, differences in others.items():
            nats = ", ".join(f"{each:+.4f}" for each in differences)
            if all(each < 0 for each in differences):
                said = "**better**" if len(differences) > 1 else "better, with one order of the data, which proves nothing"
            elif all(each > 0 for each in differences):
                said = "**worse: depth does not pay here**" if len(differences) > 1 else "worse, with one order of the data"
            else:
                said = "not to be told apart"
            lines.append(f"{label} against the base on the {control}: {said} (loss {nats} nats per token)")
    return lines


def benchmark_table(result: dict[str, Any]) -> list[str]:
    """Values in per cent, the mean of the seeds; the interval is that of one model's rows."""
    tasks = list(result["base_scores"])
    rows = ["| | " + " | ".join(tasks) + " | mean |", "|---" * (len(tasks) + 2) + "|"]

    def row(label: str, scores: list[dict[str, dict[str, Any]]]) -> str:
        values = [mean(each[task]["value"] for each in scores) for task in tasks]
        return f"| {label} | " + " | ".join(f"{100 * value:.1f}" for value in [*values, mean(values)]) + " |"

    rows.append(row("the base, not trained", [result["base_scores"]]))
    rows += [
        row(label, [each["scores"] for each in result["runs"] if each["name"] == name])
        for name, label in result["labels"].items()
    ]
    ends = [each for each in result["base_scores"].values() if each["low"] is not None]
    width = max((each["high"] - each["low"]) / 2 for each in ends) if ends else float("nan")
    some = ", ".join(f"{task} {each['n']}" for task, each in result["base_scores"].items())
    known = f"With so few, a value is known to {100 * width:.0f} points at worst (95 %); smaller gaps say nothing."
    return [*rows, f"\nRows: {some}. {known}"]


def count(number: int, what: str) -> str:
    """`1 order`, `3 orders`."""
    return f"{number} {what}{'s' * (number != 1)}"


def first(run: dict[str, Any]) -> float:
    """Perplexity before the first step."""
    return perplexity(next(iter(run["curve"].values())))


def last(run: dict[str, Any]) -> float:
    """Perplexity after the last step."""
    return perplexity(list(run["curve"].values())[-1])


def perplexity(loss: float) -> float:
    """Of a loss in nats per token."""
    return math.exp(loss)


def draw(file: Path, result: dict[str, Any]) -> None:
    """Held-out perplexity by training FLOPs: a thin line for each order of the data, a thick one for their mean."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), dpi=150, layout="constrained")
    axes = figure.subplots()
    for name, label in result["labels"].items():
        own = [each["curve"] for each in result["runs"] if each["name"] == name]
        flops = [int(step) * result["flops_per_token"][name] for step in own[0]]
        curves = [[perplexity(loss) for loss in curve.values()] for curve in own]
        style = "--" if name in CONTROLS else "-"
        for curve in curves:
            axes.plot(flops, curve, color=COLORS[name], linewidth=0.8, alpha=0.4, linestyle=style)
        average = [mean(values) for values in zip(*curves, strict=True)]
        axes.plot(flops, average, color=COLORS[name], linewidth=2, linestyle=style, marker="o", markersize=4, label=label)
    axes.set_yscale("log")
    axes.set_xlabel("training FLOPs")
    axes.set_ylabel("held-out perplexity (lower is better)")
    axes.grid(alpha=0.3, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(file, format="png")


def main() -> None:
    """Run what is missing and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("base", type=Path, help="a checkpoint folder")
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--validation", type=Path, required=True)
    parser.add_argument("--eval", type=Path, help="benchmarks in the Hub's layout; without it only the text is measured")
    parser.add_argument("--tasks", nargs="+", default=list(SUITES["h6"]), metavar="TASK")
    parser.add_argument("--tokens", type=parse_count, default=100_000, help="that each deepened model is trained on")
    parser.add_argument("--seeds", type=int, default=3, help="orders of the data")
    parser.add_argument("--limit", type=int, help="rows of each task")
    parser.add_argument("--drop", type=int, default=8)
    parser.add_argument("--search-tokens", type=parse_count, default=8192)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--batch-tokens", type=parse_count, default=1024)
    parser.add_argument("--validation-tokens", type=parse_count, default=4096)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--device")
    parser.add_argument("--work", type=Path, help="where runs are kept; a folder of its own for each setting")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--page", type=Path, default=HERE.parent / "docs" / "results.md")
    options = parser.parse_args()
    options.work = options.work or HERE / "work" / f"evidence-{options.base.name}-{options.tokens}"
    result = summary(options)
    draw(options.page.with_suffix(".png"), result)
    page = report(result, options.page.with_suffix(".png").name)
    write_file(options.page, page)
    options.results.mkdir(parents=True, exist_ok=True)
    file = options.results / f"evidence-{result['model']}-{result['date']}"
    file.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    file.with_suffix(".md").write_text(report(result, f"../../docs/{options.page.with_suffix('.png').name}"), encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
