"""The numbers and the picture of the README: the demo recipe, and the control that says what its healing is worth.

    python recipes/prepare_demo.py && python benchmarks/demo.py

runs `recipes/smollm2-cpu.yaml` with SOLAR's plain copies (`--set deeper.identity_init=false`), then trains the base itself on
the same tokens with the same settings (the control), and writes `benchmarks/results/demo-DATE.{md,json}` and
`docs/recovery.png`. About 6 minutes on 2 cores; 5 GB of disk.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

from deepen.doctor import doctor
from deepen.report.curves import recovery_curve
from deepen.train.metrics import read_rows

HERE = Path(__file__).parent
RECIPE = "recipes/smollm2-cpu.yaml"
RUNS = HERE / "work" / "demo"


def deepen(*words: str) -> str:
    """Run the command line and return what it printed on stdout."""
    return subprocess.run([sys.executable, "-m", "deepen", *words], check=True, stdout=subprocess.PIPE, text=True).stdout


def control_command(healing: str, base: str, out: Path) -> list[str]:
    """The command of the healing stage, turned on the base: the same data, tokens and settings."""
    words = shlex.split(healing)[1:]
    level = words.index("--base")
    return ["pretrain", base, str(out), *words[3:level], *words[level + 2 :]]


def points(folder: Path) -> list[tuple[int, float]]:
    """The validation curve of a training run: tokens and perplexity."""
    rows = read_rows(folder / "metrics.jsonl")
    return [(row["tokens"], row["validation_perplexity"]) for row in rows if "validation_perplexity" in row]


def training_rate(folder: Path) -> float:
    """Tokens per second over all steps, validation not counted."""
    rows = [row for row in read_rows(folder / "metrics.jsonl") if "loss" in row]
    return rows[-1]["tokens"] / sum(row["seconds"] for row in rows)


def report(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    machine = result["machine"]
    lines = [
        f"# The demo: SmolLM2-135M from 30 to 44 layers\n\n{result['date']}, `python benchmarks/demo.py`\n",
        f"- {machine['cpu']}, {machine['cores']} cores; {', '.join(f'{k} {v}' for k, v in machine['versions'].items())}",
        f"- perplexity on {result['tokens_scored']:,} held-out tokens of Python's help topics, float32",
        f"- the recipe took {result['recipe_seconds']:.0f} s; training ran at {result['tokens_per_second']:.0f} tokens/s\n",
        "| model | layers | parameters | perplexity |\n|---|---|---|---|",
        *(f"| {row['model']} | {row['layers']} | {row['parameters']:,} | {row['perplexity']:.2f} |" for row in result["table"]),
        f"\nAsked {result['prompt']!r}, the healed model (Q8_0, llama.cpp) answers: {result['answer']!r}\n",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run the recipe and the control, and write the results."""
    shutil.rmtree(RUNS, ignore_errors=True)
    start = time.monotonic()
    run = json.loads(deepen("run", RECIPE, "--set", "deeper.identity_init=false", "--out", str(RUNS), "--json"))
    seconds = time.monotonic() - start
    stages = {stage["name"]: stage for stage in run["stages"]}
    deepen(*control_command(stages["healed"]["command"], str(RUNS / "base-hf"), RUNS / "control"))

    curves = {name: points(RUNS / name) for name in ("healed", "control")}
    judged = {name: stages[f"{name}-perplexity"] for name in ("base", "deeper", "healed")}
    values = {name: stage["result"]["tasks"]["perplexity"]["value"] for name, stage in judged.items()}
    trained = curves["control"][-1][0]
    labels = {
        "base": "SmolLM2-135M",
        "deeper": "deepened with `--drop 8`, not trained",
        "healed": f"the same after {trained:,} tokens of healing",
    }
    table = [
        {"model": labels[name], **judged[name]["model"], "perplexity": values[name]} for name in ("base", "deeper", "healed")
    ]
    control = {"model": f"control: SmolLM2-135M itself after the same {trained:,} tokens", **judged["base"]["model"]}
    table.append({**control, "perplexity": curves["control"][-1][1]})
    versions = {name: version for name, version in doctor()["versions"].items() if name in {"deepen", "torch", "transformers"}}
    result = {
        "date": date.today().isoformat(),
        "machine": {"cpu": doctor()["cpu"]["model"], "cores": doctor()["cpu"]["cores"], "versions": versions},
        "recipe_seconds": seconds,
        "tokens_per_second": training_rate(RUNS / "healed"),
        "tokens_scored": judged["base"]["result"]["tasks"]["perplexity"]["tokens"],
        "table": table,
        "curves": curves,
        "prompt": stages["answer"]["prompt"],
        "answer": stages["answer"]["result"]["text"],
    }
    pictured = {"30 → 44 layers (--drop 8)": curves["healed"], "control: the base itself": curves["control"]}
    recovery_curve(HERE.parent / "docs" / "recovery.png", pictured, baseline=values["base"])
    for suffix, text in (("json", json.dumps(result, indent=2) + "\n"), ("md", report(result))):
        (HERE / "results" / f"demo-{result['date']}.{suffix}").write_text(text)
    print(report(result))
    shutil.rmtree(RUNS)


if __name__ == "__main__":
    main()
