"""Whether healing trials tell plans apart: six plans for SmolLM2-135M, ranked after a few steps with two data orders.

    python benchmarks/explore_trials.py --base MODEL --train TRAIN.txt --validation VALID.txt [--steps 20] [--work DIR]

MODEL is SmolLM2-135M as a checkpoint folder. The plans repeat 14 layers each, among them SOLAR's own (8:22 is `--drop 8`); the
base is trained beside them as the control. The order in which they end must be the same with both data orders: Spearman's rank
correlation of 0.8 or more. A finished trial is kept in the work folder and not repeated. 14 trainings of 20 steps, each of
1,024 tokens: half an hour on 2 cores; 5 GB of memory. `--starts copies identity` also tries identity starts, which doubles
that. The result goes to `benchmarks/results/explore-trials-DATE.{md,json}`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from deepen.data.corpus import open_corpora
from deepen.data.pack import count_rows, pack_rows
from deepen.doctor import doctor
from deepen.explore.results import Candidate
from deepen.explore.trials import STARTS, Trials, heal_trials
from deepen.plan import plan
from deepen.train.loop import Batch
from deepen.train.network import Words, open_trainable
from deepen.train.sequences import sequence

HERE = Path(__file__).parent
REPEATS = ("5:19", "2:16", "8:22", "9:23", "10:24", "13:27")
LENGTH, BATCH_ROWS, HELD_OUT = 512, 2, 8
ROWS = 176  # of the training text: one epoch is 88 steps
SEEDS = (0, 1)
ENOUGH = 0.8


def rows_of(text: Path, tokenizer: Any, most: int) -> list[Batch]:
    """The first rows of a text."""
    (corpus,) = open_corpora([text], tokenizer, weights=None)
    chosen = np.arange(min(most, count_rows(corpus, LENGTH)))
    packed = pack_rows([corpus], np.zeros_like(chosen), chosen, LENGTH)
    places = packed.positions if packed.positions is not None else [None] * len(chosen)
    return [sequence(*row) for row in zip(packed.tokens, packed.labels, places, strict=True)]


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's rank correlation; no two values are equal."""
    ranks = [np.argsort(np.argsort(values)) for values in (one, other)]
    return float(np.corrcoef(*ranks)[0, 1])


def summary(races: Sequence[Trials], options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Where each plan ended with each data order, and whether the orders agree."""
    machine = doctor()
    ends = [{f"{t.candidate.options['repeat']} {t.start}": t for t in race.trials if t.candidate} for race in races]
    names = list(ends[0])
    losses = [[end[name].loss.value for name in names] for end in ends]
    starts = [[end[name].curve[0][1] for name in names] for end in ends]
    return {
        "date": date.today().isoformat(),
        "machine": {
            "cpu": machine["cpu"]["model"],
            "cores": machine["cpu"]["cores"],
            "versions": {name: machine["versions"][name] for name in ("deepen", "torch", "transformers")},
        },
        "steps": options.steps,
        "tokens": races[0].tokens,
        "seconds": round(seconds, 1),
        "control": [race.control.to_dict() for race in races],
        "trials": {name: [end[name].to_dict() for end in ends] for name in names},
        "spearman": spearman(*losses),
        "spearman_before_and_after": [spearman(*pair) for pair in zip(starts, losses, strict=True)],
        "met": spearman(*losses) >= ENOUGH,
    }


def report(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    machine = result["machine"]
    control = ", ".join(format(each["value"], ".3f") for each in result["control"])
    lines = [
        f"# Healing trials of SmolLM2-135M: {len(result['trials'])} plans, two data orders\n",
        f"{result['date']}, `python benchmarks/explore_trials.py --steps {result['steps']}`, {result['seconds']:.0f} s\n",
        f"- {machine['cpu']}, {machine['cores']} cores; {', '.join(f'{k} {v}' for k, v in machine['versions'].items())}",
        f"- {result['tokens']:,} tokens each; held-out loss on {HELD_OUT} rows of {LENGTH} tokens, nats per token",
        f"- the control, the base on the same tokens: {control}\n",
        "| repeat | before | seed 0 | rank | seed 1 | rank |\n|---|---|---|---|---|---|",
    ]
    for name, (first, second) in result["trials"].items():
        told = [f"{each['value']:.3f} ({each['low']:.3f} to {each['high']:.3f}) | {each['rank']}" for each in (first, second)]
        lines.append(f"| {name} | {first['curve'][0][1]:.3f} | {' | '.join(told)} |")
    before = ", ".join(format(value, ".2f") for value in result["spearman_before_and_after"])
    lines += [
        f"\nSpearman's rank correlation between the two data orders: {result['spearman']:.2f};"
        f" at least {ENOUGH}: **{'met' if result['met'] else 'missed'}**",
        f"\nBetween the order before and after the training, for each data order: {before}",
        "\nPlans of one rank cannot be told apart on these rows. Intervals are of the rows, not of the data order.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the trials that are missing, and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--base", type=Path, required=True, help="SmolLM2-135M as a checkpoint folder")
    parser.add_argument("--train", type=Path, required=True, help="text to train on")
    parser.add_argument("--validation", type=Path, required=True, help="held-out text")
    parser.add_argument("--steps", type=int, default=20, help="of each trial")
    parser.add_argument("--repeat", nargs="+", default=REPEATS, metavar="I:J", help="the plans")
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=STARTS[:1], help="how repeated layers begin")
    parser.add_argument("--work", type=Path, default=HERE / "work" / "explore-trials", help="where trials are kept")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="where the result goes")
    options = parser.parse_args()

    tokenizer = Words(open_trainable(options.base)).tokenizer
    learned, held_out = rows_of(options.train, tokenizer, ROWS), rows_of(options.validation, tokenizer, HELD_OUT)
    plans = [{"repeat": repeat} for repeat in options.repeat]
    finalists = [Candidate(each, plan(options.base, **each).layers) for each in plans]
    options.work.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    races = [
        heal_trials(
            options.base, finalists, rows=learned, held_out=held_out, folder=options.work, steps=options.steps,
            starts=options.starts, batch_rows=BATCH_ROWS, seed=seed,
        )
        for seed in SEEDS
    ]  # fmt: skip
    result = summary(races, options, time.monotonic() - begin)
    options.results.mkdir(parents=True, exist_ok=True)
    for suffix, content in (("json", json.dumps(result, indent=2) + "\n"), ("md", report(result))):
        (options.results / f"explore-trials-{result['date']}.{suffix}").write_text(content)
    print(report(result))


if __name__ == "__main__":
    main()
