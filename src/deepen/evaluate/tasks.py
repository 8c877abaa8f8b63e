"""The suites and their tasks: which definition of lm-eval's each is, with how many solved examples, on which data.

Nothing here imports lm-eval; its task files are read as the YAML that they are.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from deepen.errors import MissingDependencyError, OptionError, UnsupportedModelError

SUITES: Mapping[str, tuple[str, ...]] = {
    "h4": ("arc_challenge", "hellaswag", "mmlu", "truthfulqa_mc2"),
    "h6": ("arc_challenge", "hellaswag", "mmlu", "truthfulqa_mc2", "winogrande", "gsm8k"),
}
"""The Open LLM Leaderboard of 2023: the four tasks that it began with, and all six. The average is their plain mean."""

SUBJECTS = 57
"""Subjects of MMLU."""


@dataclass(frozen=True)
class Task:
    """A task as deepen runs it.

    Attributes:
        name: such as `arc_challenge`.
        files: lm-eval's task files by the name of what they define: one, or one for each subject of MMLU.
        shots: solved examples in each prompt; None for as many as the file says.
        metric: the one that is the task's value, as `name` or `name,filter`; None for the first of the usual ones.
        columns: that the data must have.
        settings: what is set otherwise than in the file.
    """

    name: str
    files: Mapping[str, Path]
    shots: int | None = None
    metric: str | None = None
    columns: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


# Leaderboard v1: https://huggingface.co/docs/leaderboards/open_llm_leaderboard/archive; file, shots, metric, columns, settings
_TRAIN = {"fewshot_split": "train"}
_KNOWN: Mapping[str, tuple[str, int, str, tuple[str, ...], Mapping[str, Any]]] = {
    "arc_challenge": ("arc/arc_challenge.yaml", 25, "acc_norm", ("question", "choices", "answerKey"), _TRAIN),
    "hellaswag": (
        "hellaswag/hellaswag.yaml",
        10,
        "acc_norm",
        ("ctx_a", "ctx_b", "activity_label", "endings", "label"),
        _TRAIN,
    ),
    "mmlu": ("mmlu/default/mmlu_*.yaml", 5, "acc", ("question", "choices", "answer"), {}),
    "truthfulqa_mc2": ("truthfulqa/truthfulqa_mc2.yaml", 0, "acc", ("question", "mc1_targets", "mc2_targets"), {}),
    "winogrande": ("winogrande/default.yaml", 5, "acc", ("sentence", "option1", "option2", "answer"), _TRAIN),
    "gsm8k": ("gsm8k/gsm8k.yaml", 5, "exact_match,strict-match", ("question", "answer"), {}),
    # the strings that ended an answer on the leaderboard, where a colon did (lm-eval of 2023, gsm8k.py)
    "gsm8k_v1": (
        "gsm8k/gsm8k.yaml",
        5,
        "exact_match,strict-match",
        ("question", "answer"),
        {"generation_kwargs": {"until": [":", "Question:", "Question"], "do_sample": False, "temperature": 0.0}},
    ),
}
_GROUP_KEYS = {"group", "class"}  # of files that define no single task


def expand(names: Iterable[str]) -> list[str]:
    """Names of tasks, with each suite replaced by its tasks and nothing twice."""
    return list(dict.fromkeys(task for name in names for task in SUITES.get(name, (name,))))


def find(name: str) -> Task:
    """The task of a name: one of the suites', or any that lm-eval defines in a file of its own.

    Raises:
        OptionError: there is none, or it is a group of tasks.
        MissingDependencyError: lm-eval is not installed.
    """
    folder = stock_folder()
    if name in _KNOWN:
        pattern, shots, metric, columns, settings = _KNOWN[name]
        files = sorted(folder.glob(pattern))
        named = {file.stem: file for file in files} if "*" in pattern else dict.fromkeys([name], files[0])
        return Task(name, named, shots, metric, columns, settings)
    file = next((file for file in _candidates(folder, name) if _defines(file, name)), None)
    if file is None:
        near = difflib.get_close_matches(name, [*SUITES, *_KNOWN, *_file_names(folder)], n=3, cutoff=0.5)
        raise OptionError(
            f"no task is called {name!r}" + (f"; near are {', '.join(near)}" if near else ""),
            where="--tasks",
            next=f"use one of {', '.join(_KNOWN)}, or a single task of lm-eval",
        )
    return Task(name, {name: file})


def definition(file: Path) -> dict[str, Any]:
    """What a task file says, with the files that it includes; functions stay the names that they are.

    Raises:
        UnsupportedModelError: the file defines something other than one task.
    """
    content = _read(file)
    included = content.pop("include", [])
    merged: dict[str, Any] = {}
    for each in [included] if isinstance(included, str) else included:
        merged |= definition(file.parent / each)
    merged.pop("task_list", None)
    return merged | content


def version(task: Task) -> str:
    """Changes whenever a task's definition does: lm-eval's own version of it, and a hash of all that defines it."""
    defined = {name: definition(file) for name, file in task.files.items()}
    modules = {match for name, file in task.files.items() for text in _strings(defined[name]) if (match := _module(file, text))}
    code = [module.read_text(encoding="utf-8") for module in sorted(modules)]
    text = json.dumps([defined, code, task.shots, task.settings], sort_keys=True, default=str)
    number = (next(iter(defined.values())).get("metadata") or {}).get("version", 0)
    return f"{number}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def stock_folder() -> Path:
    """Where lm-eval keeps its task files.

    Raises:
        MissingDependencyError: lm-eval is not installed.
    """
    found = find_spec("lm_eval")
    if found is None or not found.submodule_search_locations:
        raise MissingDependencyError("benchmarks need the package lm-eval", next="pip install 'deepen[evaluate]'")
    return Path(found.submodule_search_locations[0]) / "tasks"


def evenly_spaced(rows: int, limit: int | None) -> list[int]:
    """Numbers of `limit` rows spread evenly over all; all of them if the limit is None or larger."""
    if limit is None or limit >= rows:
        return list(range(rows))
    return [place * rows // limit for place in range(limit)]


def check_limit(limit: int | None) -> None:
    """Refuse a limit that leaves nothing.

    Raises:
        OptionError: it is less than 1.
    """
    if limit is not None and limit < 1:
        raise OptionError(f"{limit} rows are none", where="--limit", next="use 1 or more")


class _Loader(yaml.SafeLoader):
    """Reads `!function module.name` as the text that it is."""


_Loader.add_constructor("!function", lambda loader, node: f"!function {loader.construct_scalar(node)}")  # type: ignore[arg-type]


def _read(file: Path) -> dict[str, Any]:
    content = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506  a safe loader
    if not isinstance(content, dict):
        raise UnsupportedModelError("the task file holds no settings", where=file, next="install lm-eval anew")
    return content


@cache
def _task_files(folder: Path) -> tuple[Path, ...]:
    return tuple(Path(root) / name for root, _, names in os.walk(folder) for name in names if name.endswith((".yaml", ".yml")))


def _file_names(folder: Path) -> list[str]:
    return [file.stem for file in _task_files(folder) if not file.stem.startswith("_")]


def _candidates(folder: Path, name: str) -> Iterable[Path]:
    """Files that may define a task, the likely ones first; reading all of them takes a second."""
    files = _task_files(folder)
    likely = [file for file in files if file.stem == name]
    yield from likely
    for file in files:
        if file not in likely and name.encode() in file.read_bytes():
            yield file


def _defines(file: Path, name: str) -> bool:
    if not re.search(rf"^[\"']?task[\"']?:\s*[\"']?{re.escape(name)}[\"']?\s*(#.*)?$", file.read_text(encoding="utf-8"), re.M):
        return False
    return not _GROUP_KEYS & definition(file).keys()


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _strings(each)
    elif isinstance(value, Sequence):
        for each in value:
            yield from _strings(each)


def _module(file: Path, text: str) -> Path | None:
    """The file of a function that a task file names, beside it or beside one that it includes."""
    if not text.startswith("!function "):
        return None
    name = text.removeprefix("!function ").rpartition(".")[0].replace(".", "/") + ".py"
    return next((folder / name for folder in (file.parent, file.parent.parent) if (folder / name).is_file()), None)
