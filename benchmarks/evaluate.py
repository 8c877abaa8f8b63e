"""Benchmarks by deepen and by lm-eval's own command: the same tasks, rows, batch size and type, every value and the time.

    python benchmarks/evaluate.py CHECKPOINT --data DIR --limit 50
    python benchmarks/evaluate.py CHECKPOINT --data DIR --tasks arc_challenge --limit 2 --repeat 1      # a quick look

DIR holds the data sets in the Hub's layout, and nothing is taken from the network. For each task both run in a process of
their own, in turn, from its start to its end: lm-eval's command with `--include_path` (a task file that includes its own and
names the local folder) and `--samples` (the rows that deepen takes), and deepen without its kept answers. The work alone is the
time without starting: that of a second run of the same rows, less that of one with a single row. The values are compared in
every printed digit. Writes `benchmarks/results/evaluate-NAME-DATE.{json,md}`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from deepen.checkpoint.manifest import versions
from deepen.doctor import doctor
from deepen.evaluate.folders import read_folder
from deepen.evaluate.tasks import definition, evenly_spaced, expand, find, locate

HERE = Path(__file__).parent
TARGET = 1.3
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def evaluate_one(setting: dict[str, Any]) -> dict[str, Any]:
    """Our harness in this process."""
    from deepen.evaluate.harness import run_tasks

    own = run_tasks(
        setting["model"],
        [setting["task"]],
        data=Path(setting["data"]),
        limit=setting["limit"],
        batch_size=setting["batch_size"],
        dtype=setting["dtype"],
        cache=False,
    )
    return dict(own.lm_eval["results"])


def write_task_files(name: str, data: Path, limit: int, folder: Path) -> dict[str, list[int]]:
    """lm-eval's own task files, pointed at the folder; returns the rows of each that deepen takes."""
    task = find(name)
    rows = {}
    for leaf, file in task.files.items():
        stock = definition(file)
        place = locate(data, stock["dataset_path"])
        settings = {"include": str(file), "task": leaf, "tag": [], "dataset_path": str(place.absolute()), **task.settings}
        settings |= {} if task.shots is None else {"num_fewshot": task.shots}
        (folder / f"{leaf}.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
        split = stock.get("test_split") or stock["validation_split"]
        rows[leaf] = evenly_spaced(len(read_folder(place, stock.get("dataset_name"))[split]), limit)
    return rows


def run(command: list[str], environment: dict[str, str]) -> tuple[float, str]:
    """The seconds of a process from its start to its end, and what it printed."""
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | OFFLINE | environment, check=False)
    if done.returncode:
        sys.exit(f"error: {command[0]} ended with exit code {done.returncode}\n{done.stderr[-2000:]}")
    return time.perf_counter() - start, done.stdout


def run_lm_eval(setting: dict[str, Any], work: Path) -> tuple[float, dict[str, Any]]:
    """lm-eval's command on one task."""
    files, out = work / "tasks", work / "out"
    files.mkdir()
    rows = write_task_files(setting["task"], Path(setting["data"]), setting["limit"], files)
    model = f"pretrained={setting['model']}" + (f",dtype={setting['dtype']}" if setting["dtype"] else "")
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", model, "--device", "cpu"]
    command += ["--batch_size", str(setting["batch_size"]), "--include_path", str(files), "--tasks", ",".join(rows)]
    command += ["--samples", json.dumps(rows), "--output_path", str(out)]
    seconds, _ = run(command, {"HF_DATASETS_CACHE": setting["datasets_cache"]})
    (file,) = out.rglob("results_*.json")
    return seconds, json.loads(file.read_text(encoding="utf-8"))["results"]


def run_deepen(setting: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """Our harness on one task, in a new process."""
    seconds, printed = run([sys.executable, __file__, "--one", json.dumps(setting)], {})
    return seconds, json.loads(printed)


def compare(setting: dict[str, Any], repeat: int) -> dict[str, Any]:
    """One task by both, in turn: medians of seconds, and the values."""
    times: dict[str, list[float]] = {"lm-eval": [], "deepen": []}
    for _ in range(repeat):
        with tempfile.TemporaryDirectory(prefix="deepen-") as work:
            seconds, theirs = run_lm_eval(setting, Path(work))
        times["lm-eval"].append(seconds)
        seconds, ours = run_deepen(setting)
        times["deepen"].append(seconds)
    values = {
        f"{leaf} {metric}": [ours[leaf].get(metric), value]
        for leaf in ours
        for metric, value in theirs[leaf].items()
        if "," in metric and isinstance(value, int | float)
    }
    differing = [name for name, (one, two) in values.items() if f"{one:.4f}" != f"{two:.4f}"]
    return {"seconds": {name: median(each) for name, each in times.items()}, "differing": differing, "values": values}


def report(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    machine = result["machine"]
    lines = [
        f"# Benchmarks of {result['name']}: deepen and lm-eval\n\n{result['date']}, `{result['command']}`\n",
        f"- {machine['cpu']['model']}, {machine['cpu']['cores']} cores; load average {result['load']}",
        f"- {', '.join(f'{key} {value}' for key, value in result['versions'].items())}\n",
        "| task | values | that differ | lm-eval, s | deepen, s | times as fast | without starting |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in result["tasks"].items():
        theirs, ours = row["seconds"]["lm-eval"], row["seconds"]["deepen"]
        alone = "" if row["work_ratio"] is None else f"{row['work_ratio']:.2f}"
        counts = f"{len(row['values'])} | {len(row['differing'])}"
        lines.append(f"| {name} | {counts} | {theirs:.1f} | {ours:.1f} | {theirs / ours:.2f} | {alone} |")
    lines.append(f"\nTarget: {TARGET} times as fast with starting, and no value that differs.")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write the result."""
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(evaluate_one(json.loads(sys.argv[2]))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tasks", default="h6")
    parser.add_argument("--limit", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--dtype")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    words = parser.parse_args()
    command = f"python benchmarks/evaluate.py {words.model.name} --tasks {words.tasks} --limit {words.limit}"
    command += f" --batch-size {words.batch_size}" + (f" --dtype {words.dtype}" if words.dtype else "")
    load = round(os.getloadavg()[0], 1)
    tasks = {}
    with tempfile.TemporaryDirectory(prefix="deepen-") as cache:
        common = {"model": str(words.model.absolute()), "data": str(words.data.absolute()), "batch_size": words.batch_size}
        for name in expand(words.tasks.split(",")):
            setting = {**common, "dtype": words.dtype, "task": name, "datasets_cache": cache}
            start = compare({**setting, "limit": 1}, 1)["seconds"]  # also fills what lm-eval's libraries cache
            row = compare({**setting, "limit": words.limit}, words.repeat)
            work = {each: row["seconds"][each] - start[each] for each in start}
            row["work_ratio"] = work["lm-eval"] / work["deepen"] if min(work.values()) > 0 else None
            tasks[name] = row
            print(f"{name}: {row['seconds']}, {len(row['differing'])} of {len(row['values'])} differ", file=sys.stderr)
    facts = doctor()
    result = {
        "name": words.model.name,
        "date": date.today().isoformat(),
        "command": command,
        "machine": {"cpu": facts["cpu"]},
        "load": load,
        "versions": versions(),
        "tasks": tasks,
    }
    words.results.mkdir(parents=True, exist_ok=True)
    file = words.results / f"evaluate-{result['name']}-{result['date']}"
    file.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    file.with_suffix(".md").write_text(report(result), encoding="utf-8")
    print(report(result))


if __name__ == "__main__":
    main()
