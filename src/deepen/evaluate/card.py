"""Results as the Hub's `model-index`, which its model pages read, alone or in a model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from deepen.checkpoint.card import split_card
from deepen.errors import CheckpointError, printable
from deepen.evaluate.results import TaskResult
from deepen.output import write_file

if TYPE_CHECKING:
    from deepen.evaluate import Report

_HARNESS = "https://github.com/EleutherAI/lm-evaluation-harness"
# the data set's id, configuration and split, as the leaderboard's own cards name them
_DATA_SETS: Mapping[str, tuple[str, str, str, str]] = {
    "arc_challenge": ("AI2 Reasoning Challenge", "ai2_arc", "ARC-Challenge", "test"),
    "hellaswag": ("HellaSwag", "hellaswag", "default", "validation"),
    "mmlu": ("MMLU", "cais/mmlu", "all", "test"),
    "truthfulqa_mc2": ("TruthfulQA", "truthful_qa", "multiple_choice", "validation"),
    "winogrande": ("Winogrande", "winogrande", "winogrande_xl", "validation"),
    "gsm8k": ("GSM8k", "gsm8k", "main", "test"),
}


def model_index(report: Report) -> list[dict[str, Any]]:
    """The value of `model-index`: https://github.com/huggingface/hub-docs/blob/main/modelcard.md.

    Fractions are given in per cent, as on the leaderboard; a limit is told in the metric's name.
    """
    results = [_result(name, task) for name, task in report.results.items()]
    return [{"name": printable(Path(report.name).name), "results": results}]


def update(model: Path, report: Report) -> None:
    """Write the results into MODEL/README.md, in place of a `model-index` that is there.

    Raises:
        CheckpointError: the card's header is not YAML.
    """
    file = model / "README.md"
    header, text = split_card(file.read_text(encoding="utf-8")) if file.exists() else ("", f"# {model.resolve().name}\n")
    try:
        facts = yaml.safe_load(header) or {}
        if not isinstance(facts, dict):
            raise yaml.YAMLError
    except (yaml.YAMLError, RecursionError) as error:
        raise CheckpointError("the header of the model card is not YAML", where=file, next="mend it, or use --out") from error
    facts["model-index"] = model_index(report)
    write_file(file, f"---\n{yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)}---\n{text}")


def _result(name: str, task: TaskResult) -> dict[str, Any]:
    text = printable(", ".join(task.facts.get("texts", [name])))
    title, kind, config, split = _DATA_SETS.get(name, (text, text, "default", "test"))
    data_set: dict[str, Any] = {"name": title, "type": kind, "config": config, "split": split}
    if task.shots:
        data_set["args"] = {"num_few_shot": task.shots}
    part = "" if task.n == task.rows else f", {task.n} of {task.rows}"
    scale = 100 if task.is_fraction else 1
    value = {"type": task.metric, "name": f"{task.metric}{part}", "value": round(scale * task.value, 4)}
    if task.low is not None and task.high is not None:
        value["args"] = {"interval_95": [round(scale * task.low, 4), round(scale * task.high, 4)]}
    found = {"task": {"type": "text-generation", "name": "Text Generation"}, "dataset": data_set, "metrics": [value]}
    return found | (
        {"source": {"name": f"lm-eval, task version {task.version}", "url": _HARNESS}} if name in _DATA_SETS else {}
    )
