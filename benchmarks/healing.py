"""What heals a deepened model, and what depth is worth: SmolLM2-135M with 44 layers against itself trained on the same tokens.

    python benchmarks/healing.py --base MODEL --train TRAIN.txt --validation VALID.txt [--work DIR] [--only RUN ...]

trains the reference curves (plain copies after SOLAR's plan, plain copies after a searched plan, copies that start as the
identity, and the control: the base itself), and the contender against the control with more data orders. MODEL is
SmolLM2-135M as a checkpoint folder. A finished run is kept in the work folder and not run again, and an interrupted one goes
on with the same command; two processes may share a work folder when `--only` gives them different runs. When all runs are
there, the result goes to `benchmarks/results/healing-DATE.{md,json}` and `docs/healing.png`. An hour on 2 cores; 5 GB of
memory and 3 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import mean
from typing import Any

import deepen
from deepen.doctor import doctor
from deepen.output import write_file
from deepen.train.metrics import METRICS_FILE, read_rows

HERE = Path(__file__).parent
CHARACTERS = 400_000  # of the training text: one epoch is 88 steps
STEPS, BATCH_TOKENS = 30, 1024
SEED_STEPS = 15  # of the runs with further data orders; at a constant rate they are the beginning of longer ones
SETTINGS: dict[str, Any] = {
    "sequence_length": 512, "batch_tokens": BATCH_TOKENS, "validation_tokens": 4096, "every": 5,
    "learning_rate": 1e-4, "schedule": "constant", "warmup": 5,
}  # fmt: skip
TOLERANCE = 0.03
COLORS = ("tab:red", "tab:orange", "tab:blue", "black")
Points = dict[int, float]


@dataclass(frozen=True)
class Start:
    """What a run begins with, and where a bare PyTorch loop went from there with another data order.

    Attributes:
        label: its name in the picture and the table.
        plan: options of `deepen.scale`; empty for the base itself.
        seen: perplexity by step.
    """

    label: str
    plan: Mapping[str, Any]
    seen: Points


def by_step(*perplexities: float) -> Points:
    """Perplexities after 0, 5, 10, … steps."""
    return {5 * place: value for place, value in enumerate(perplexities)}


STARTS = {
    "drop": Start(
        "SOLAR's plan, plain copies (--drop 8)", {"drop": 8}, by_step(29.61, 21.98, 19.44, 18.28, 17.71, 17.22, 16.81)
    ),
    "repeat": Start(
        "searched plan, plain copies (--repeat 5:19)",
        {"repeat": "5:19"},
        by_step(24.50, 19.86, 18.05, 17.26, 16.75, 16.35, 16.14),
    ),
    "identity": Start(
        "identity start (--repeat 8:22 --identity-init)",
        {"repeat": "8:22", "identity_init": True},
        {0: 19.50, 5: 16.91, 10: 15.67, 20: 15.09, 25: 14.83, 30: 14.71},
    ),
    "control": Start("control: the base itself", {}, by_step(19.50, 17.06, 15.74, 15.28, 14.97, 14.69, 14.56)),
}
CONTENDER, CONTROL = "identity", "control"
SEEDS = (0, 1, 2)
RUNS = [(name, 0) for name in STARTS] + [(name, seed) for seed in SEEDS[1:] for name in (CONTROL, CONTENDER)]
"""Start and seed of every run."""


def file_of(work: Path, name: str, seed: int) -> Path:
    """Where the metrics of a finished run are."""
    return work / f"{name}-{seed}.jsonl"


def train(name: str, seed: int, *, base: Path, text: Path, validation: Path, work: Path) -> None:
    """Train one run, unless it is done; what is kept of it are its metrics."""
    plan, metrics = STARTS[name].plan, file_of(work, name, seed)
    out, deeper = metrics.with_suffix(""), metrics.with_suffix(".start")
    if metrics.exists():
        return
    if not out.exists():
        if plan and not deeper.exists():
            deepen.scale(base, deeper, **plan)
        start = deeper if plan else base
        tokens = BATCH_TOKENS * (SEED_STEPS if seed else STEPS)
        deepen.pretrain(start, out, data=text, validation=validation, seed=seed, tokens=tokens, save_every=10, **SETTINGS)
    shutil.copy(out / METRICS_FILE, metrics)
    for folder in (out, deeper):
        shutil.rmtree(folder, ignore_errors=True)


def perplexities(metrics: Path) -> Points:
    """Validation perplexity by step."""
    return {row["step"]: row["validation_perplexity"] for row in read_rows(metrics) if "validation_perplexity" in row}


def training_loss(metrics: Path) -> float:
    """Mean nats per token over all steps: of text that the model has not been trained on yet, but of articles that it has."""
    return mean(row["loss"] for row in read_rows(metrics) if "loss" in row)


def summary(work: Path) -> dict[str, Any]:
    """All curves, how far they are from the ones seen before, and what depth is worth."""
    files = {f"{name}-{seed}": file_of(work, name, seed) for name, seed in RUNS}
    curves = {run: perplexities(file) for run, file in files.items()}
    against = [
        {step: curves[f"{CONTENDER}-{seed}"][step] / value - 1 for step, value in curves[f"{CONTROL}-{seed}"].items()}
        for seed in SEEDS
    ]
    machine = doctor()
    return {
        "date": date.today().isoformat(),
        "machine": {
            "cpu": machine["cpu"]["model"],
            "cores": machine["cpu"]["cores"],
            "versions": {name: machine["versions"][name] for name in ("deepen", "torch", "transformers")},
        },
        "settings": SETTINGS,
        "tokens": STEPS * BATCH_TOKENS,
        "curves": curves,
        "training_loss": {run: training_loss(file) for run, file in files.items()},
        "worst_deviation": {
            name: max((curves[f"{name}-0"][step] / value - 1 for step, value in start.seen.items()), key=abs)
            for name, start in STARTS.items()
        },
        "contender_against_control": against,
        "mean_against_control": {step: mean(one[step] for one in against) for step in against[-1]},
    }


def report(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    machine, curves = result["machine"], result["curves"]
    steps = list(curves[f"{CONTROL}-0"])
    worst = result["worst_deviation"]
    contest = result["contender_against_control"]
    better = [step for step in result["mean_against_control"] if all(one[step] < 0 for one in contest)] or "none"
    met = all(abs(value) <= TOLERANCE for value in worst.values())

    def row(label: str, values: Mapping[int, float], form: str) -> str:
        return f"| {label} | " + " | ".join(format(values[step], form) if step in values else "" for step in steps) + " |"

    header = f"| steps of {BATCH_TOKENS:,} tokens | " + " | ".join(map(str, steps)) + " |\n|---" + "|---" * len(steps) + "|"
    lines = [
        f"# Healing SmolLM2-135M: what depth is worth\n\n{result['date']}, `python benchmarks/healing.py`\n",
        f"- {machine['cpu']}, {machine['cores']} cores; {', '.join(f'{k} {v}' for k, v in machine['versions'].items())}",
        f"- {', '.join(f'{k} {v:g}' if isinstance(v, float) else f'{k} {v}' for k, v in SETTINGS.items())}; all weights learn",
        f"- perplexity on the first {SETTINGS['validation_tokens']:,} tokens of the validation text\n",
        header,
    ]
    for name, start in STARTS.items():
        lines += [row(start.label, curves[f"{name}-0"], ".2f"), row("- a bare loop, other data order", start.seen, ".2f")]
    deviations = ", ".join(f"{name} {value:+.1%}" for name, value in worst.items())
    lines += [
        f"\nFurthest from the bare loop: {deviations}; within {TOLERANCE:.0%}: **{'met' if met else 'missed'}**\n",
        f"## {STARTS[CONTENDER].label} against the control on the same tokens in the same order\n",
        header,
        *(row(f"seed {seed}", one, "+.2%") for seed, one in zip(SEEDS, contest, strict=True)),
        row("mean", result["mean_against_control"], "+.2%"),
        f"\nBelow zero the deepened model is better. Steps after which it is so with every data order: {better}",
    ]
    return "\n".join(lines) + "\n"


def draw(file: Path, result: dict[str, Any]) -> None:
    """Left all starts with one data order, right the contender against the control with each."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MultipleLocator, PercentFormatter

    figure = Figure(figsize=(11, 4.6), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for color, (name, start) in zip(COLORS, STARTS.items(), strict=True):
        points = result["curves"][f"{name}-0"]
        left.plot(points.keys(), points.values(), color=color, marker="o", markersize=4, label=start.label)
        left.plot(start.seen.keys(), start.seen.values(), color=color, marker="x", markersize=6, linestyle="none", alpha=0.6)
    left.plot([], [], color="gray", marker="x", linestyle="none", label="a bare loop, another data order")
    left.set_yscale("log")
    left.set_yticks([15, 17, 20, 25, 30])
    left.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    left.minorticks_off()
    left.set_ylabel("validation perplexity (lower is better)")

    for seed, one in zip(SEEDS, result["contender_against_control"], strict=True):
        label = "each data order" if seed == SEEDS[0] else None
        right.plot(one.keys(), one.values(), color=COLORS[2], alpha=0.45, linewidth=1, label=label)
    average = result["mean_against_control"]
    right.plot(
        average.keys(), average.values(), color=COLORS[2], marker="o", markersize=4, linewidth=2, label=f"mean of {len(SEEDS)}"
    )
    right.axhline(0, color=COLORS[3], linestyle="--", label="control")
    right.yaxis.set_major_locator(MultipleLocator(0.005))
    right.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
    right.set_ylabel("perplexity, identity start against control")
    for axes in (left, right):
        axes.set_xlabel(f"steps of {BATCH_TOKENS:,} tokens")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.savefig(file, format="png")


def main() -> None:
    """Do the runs that are missing, and write the results when none is."""
    names = [f"{name}-{seed}" for name, seed in RUNS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--base", type=Path, required=True, help="SmolLM2-135M as a checkpoint folder")
    parser.add_argument("--train", type=Path, required=True, help=f"text; its first {CHARACTERS:,} characters are trained on")
    parser.add_argument("--validation", type=Path, required=True, help="held-out text")
    parser.add_argument("--work", type=Path, default=HERE / "work" / "healing", help="where runs are kept")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="RUN", help=f"of {', '.join(names)}")
    options = parser.parse_args()

    options.work.mkdir(parents=True, exist_ok=True)
    text = options.work / "train.txt"
    if not text.exists():
        write_file(text, options.train.read_text(encoding="utf-8")[:CHARACTERS])
    for name, seed in RUNS:
        if f"{name}-{seed}" in options.only:
            train(name, seed, base=options.base, text=text, validation=options.validation, work=options.work)
    missing = [f"{name}-{seed}" for name, seed in RUNS if not file_of(options.work, name, seed).exists()]
    if missing:
        print(f"still to be run: {', '.join(missing)}")
        return
    result = summary(options.work)
    draw(HERE.parent / "docs" / "healing.png", result)
    for suffix, content in (("json", json.dumps(result, indent=2) + "\n"), ("md", report(result))):
        (HERE / "results" / f"healing-{result['date']}.{suffix}").write_text(content)
    print(report(result))


if __name__ == "__main__":
    main()
