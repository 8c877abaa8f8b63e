"""What a search of layer plans takes, and how good the plan is that it finds.

    python benchmarks/explore.py MODEL --text WIKITEXT.txt NOVEL.txt STORIES.txt [--layer-scan]

measures on the first text, for all blocks i:j run twice,

- the exhaustive search with shared states, against a loop over virtual models (over one loaded base),
  in float32 and in the checkpoint's own type: of the loop some plans are timed, evenly spread, and the rest is worked out in
  proportion to the layers that they run;
- the screened search against the exhaustive one;

and on every text, for plans of `--add` layers, what the screened search finds against the exhaustive one, both judged on
held-out text, and what share of the work it did, counted in layer evaluations times tokens. `--layer-scan` installs that tool
into an environment of its own, lets it scan the model with its own probe, and judges its first plans on the same held-out text.
`--skip-blocks` leaves the first part out, which takes most of the time. A dated result goes to `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

import deepen
from deepen.checkpoint import resolve
from deepen.data.text import encoder, read_tokens
from deepen.doctor import doctor
from deepen.evaluate import evaluate
from deepen.explore import KINDS, explore
from deepen.likelihood import window_losses
from deepen.model import deepened

HERE = Path(__file__).parent
LAYER_SCAN = ("layer-scan==0.2.2", "torch==2.13.0", "transformers==5.23.0")
PUBLISHED = {"seconds": 401, "plans": 78}  # seen with SmolLM2-135M on two cores
EVERYTHING = "1000x"  # no bound on the cost: the number of layers bounds the blocks


def searched(model: Path, text: Path, work: Path, **options: Any) -> dict[str, Any]:
    """A search: its time, its work, and its best plan on held-out text."""
    start = time.perf_counter()
    found = explore(model, data=text, out=work / "out", overwrite=True, **options)
    seconds = time.perf_counter() - start
    best = found.plans[0]
    assert best.held_out is not None
    return {
        "seconds": seconds,
        "plans": found.candidates,
        "work": dict(found.work),
        "best": best.candidate.slices,
        "options": dict(best.candidate.options),
        "score": best.score.value,
        "held_out": best.held_out.value,
        "held_out_interval": [best.held_out.low, best.held_out.high],
        "held_out_of_all": {plan.candidate.slices: plan.held_out.value for plan in found.plans if plan.held_out is not None},
    }


def looped(model: Path, text: Path, *, tokens: int, window: int, dtype: str | None, plans: int) -> dict[str, Any]:
    """A loop over virtual models: seconds for some plans, and for all in proportion to the layers that they run."""
    base, tokenizer = deepen.load(model, dtype=dtype)
    depth = base.config.get_text_config().num_hidden_layers
    stream = read_tokens(text, encoder(tokenizer), end_of_text=tokenizer.eos_token_id)[:tokens]
    rows = torch.from_numpy(stream[: tokens // window * window].reshape(-1, window))
    blocks = [(first, end) for first in range(depth) for end in range(first + 1, depth + 1)]
    chosen = blocks[:: max(1, len(blocks) // plans)][:plans]
    window_losses(base, rows[:1])  # warm
    start = time.perf_counter()
    for first, end in chosen:
        window_losses(deepened(base, model, {"repeat": f"{first}:{end}"}), rows)
    seconds = time.perf_counter() - start
    layers = sum(depth + end - first for first, end in chosen)
    all_layers = depth + sum(depth + end - first for first, end in blocks)
    return {
        "dtype": str(base.dtype).removeprefix("torch."),
        "timed_plans": len(chosen),
        "timed_seconds": seconds,
        "seconds": seconds / layers * all_layers,
        "work": all_layers * rows.numel(),
    }


def found_against_best(screened: dict[str, Any], full: dict[str, Any]) -> dict[str, Any]:
    """How much worse the plan found is than the exhaustive search's on held-out text, and for what share of its work."""
    gap = screened["held_out"] - full["held_out"]
    return {
        "share_of_work": screened["work"]["actual"] / full["work"]["actual"],
        "score_gap": gap / full["held_out"],
        "perplexity_gap": math.exp(gap) - 1,
        "same_plan": screened["best"] == full["best"],
    }


def layer_scan(model: Path, text: Path, work: Path, *, window: int, tokens: int) -> dict[str, Any]:
    """What the tool takes and picks, judged on text."""
    programs = work / "layer-scan" / "bin"
    if not (programs / "layer-scan").exists():
        subprocess.run([sys.executable, "-m", "venv", str(work / "layer-scan")], check=True)
        subprocess.run([programs / "python", "-m", "pip", "install", "-qq", *LAYER_SCAN], check=True)
    out = work / "layer-scan-results"
    start = time.perf_counter()
    command = [programs / "layer-scan", "scan", "-m", str(model), "--dtype", "float32", "-o", str(out)]
    subprocess.run([*command, "--top-k", "3"], check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    picked = [f"{each['i']}:{each['j']}" for each in results["top_configs"]]
    judged = {
        plan: evaluate(model, data=text, window=window, tokens=tokens, dtype="float32", repeat=plan).average for plan in picked
    }
    # deepen's choice among blocks of the same numbers of layers, on the same text
    own = {}
    for size in {int(end) - int(first) for first, end in (plan.split(":") for plan in picked)}:
        best = searched(model, text, work, add=size, kinds=("repeat", "drop"), window=window, tokens=tokens)
        own[str(size)] = {"plan": best["best"], "seconds": best["seconds"], "held_out_perplexity": math.exp(best["held_out"])}
    return {"seconds": seconds, "picked": judged, "deepen": own}


def all_blocks(model: Path, text: Path, work: Path, loop_plans: int, shape: dict[str, int]) -> dict[str, Any]:
    """The searches through all blocks i:j run twice, and the loop."""
    blocks: dict[str, Any] = {"kinds": ("repeat",), "budget": EVERYTHING, **shape}
    full = searched(model, text, work, exhaustive=True, **blocks)
    screened = searched(model, text, work, **blocks)
    return {
        "exhaustive": full,
        "screened": screened,
        "loops": [looped(model, text, dtype=dtype, plans=loop_plans, **shape) for dtype in ("float32", None)],
        "fewer_evaluations": full["work"]["naive"] / full["work"]["actual"],
        **found_against_best(screened, full),
    }


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """Every measurement."""
    model, first, work = resolve(options.model), options.text[0], options.work
    work.mkdir(parents=True, exist_ok=True)
    shape = {"tokens": options.tokens, "window": options.window}
    sized: dict[str, Any] = {"add": options.add, "kinds": tuple(options.kinds), **shape}
    texts = {}
    for text in options.text:
        pair = [searched(model, text, work, exhaustive=exhaustive, **sized) for exhaustive in (False, True)]
        texts[text.name] = {"screened": pair[0], "exhaustive": pair[1], **found_against_best(*pair)}
    machine = doctor()
    return {
        "date": date.today().isoformat(),
        "machine": {
            "cpu": machine["cpu"]["model"],
            "cores": machine["cpu"]["cores"],
            "versions": {name: machine["versions"][name] for name in ("deepen", "torch", "transformers")},
        },
        "settings": {**shape, "add": options.add, "kinds": list(options.kinds), "loop_plans": options.loop_plans},
        "blocks": None if options.skip_blocks else all_blocks(model, first, work, options.loop_plans, shape),
        "texts": texts,
        "layer_scan": layer_scan(model, first, work, **shape) if options.layer_scan else None,
    }


def report_blocks(blocks: dict[str, Any]) -> list[str]:
    """The part about all blocks i:j."""
    full, screened = blocks["exhaustive"], blocks["screened"]
    ratio = screened["seconds"] / full["seconds"]
    lines = [
        f"## All {full['plans']} blocks i:j run twice\n",
        "| | layer evaluations times tokens | seconds | to the exhaustive search |\n|---|---|---|---|",
        f"| exhaustive, shared states | {full['work']['actual']:,} | {full['seconds']:.0f} | 1.00 |",
        f"| screened | {screened['work']['actual']:,} | {screened['seconds']:.0f} | {ratio:.2f} |",
    ]
    for loop in blocks["loops"]:
        label = f"loop over virtual models, {loop['dtype']} ({loop['timed_plans']} timed)"
        lines.append(f"| {label} | {loop['work']:,} | {loop['seconds']:.0f} | {loop['seconds'] / full['seconds']:.2f} |")
    return [
        *lines,
        f"\nEach plan from the start runs {blocks['fewer_evaluations']:.2f} times as many layers. Both searches' times hold "
        "loading the model and scoring the best on held-out text.\n",
    ]


def report(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    machine, settings = result["machine"], result["settings"]
    lines = [
        "# Searching layer plans\n",
        f"{result['date']}, `python benchmarks/explore.py`\n",
        f"- {machine['cpu']}, {machine['cores']} cores; {', '.join(f'{k} {v}' for k, v in machine['versions'].items())}",
        f"- {settings['tokens']:,} tokens in windows of {settings['window']}, and as many held out\n",
        *([] if result["blocks"] is None else report_blocks(result["blocks"])),
        f"## Plans of {settings['add']} added layers ({', '.join(settings['kinds'])})\n",
        "| text | plans | share of the work | found | nats | exhaustive best | nats | perplexity above the best |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, each in result["texts"].items():
        one, best = each["screened"], each["exhaustive"]
        lines.append(
            f"| {name} | {one['plans']} | {each['share_of_work']:.1%} | {one['best']} | {one['held_out']:.4f} | "
            f"{best['best']} | {best['held_out']:.4f} | {each['perplexity_gap']:+.2%} |"
        )
    if result["layer_scan"] is not None:
        scan = result["layer_scan"]
        picked = ", ".join(f"{plan} {value:.1f}" for plan, value in scan["picked"].items())
        own = ", ".join(f"{each['plan']} {each['held_out_perplexity']:.1f}" for each in scan["deepen"].values())
        lines += [
            "\n## layer-scan 0.2.2\n",
            f"{scan['seconds']:.0f} s (seen elsewhere: {PUBLISHED['seconds']} s for {PUBLISHED['plans']} plans). Its first "
            f"plans, with their perplexity: {picked}. Of the same sizes `deepen explore` finds: {own}.",
        ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark and write its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a checkpoint folder")
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="text files; the first for times")
    parser.add_argument("--tokens", type=int, default=2048, help="to search on")
    parser.add_argument("--window", type=int, default=128)
    parser.add_argument("--add", type=int, default=14, help="layers that the plans add")
    parser.add_argument("--kinds", nargs="+", default=[kind for kind in KINDS if kind != "union"], choices=KINDS)
    parser.add_argument("--loop-plans", type=int, default=16, help="plans of the loop that are timed")
    parser.add_argument("--skip-blocks", action="store_true", help="only the plans of --add layers")
    parser.add_argument("--layer-scan", action="store_true", help="install and run layer-scan besides")
    parser.add_argument("--work", type=Path, default=HERE / "work" / "explore", help="for files that come and go")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args(arguments)
    result = benchmark(options)
    options.results.mkdir(parents=True, exist_ok=True)
    stem = options.results / f"explore-{result['date']}"
    stem.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    stem.with_suffix(".md").write_text(report(result), encoding="utf-8")
    print(report(result))


if __name__ == "__main__":
    main()
