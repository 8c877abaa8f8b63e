"""lm-eval's own task objects for our tasks: its task files with our data, examples and rows, and its metrics on our answers."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import jinja2
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.tasks._yaml_loader import load_yaml

from deepen.data.layout import locate
from deepen.errors import DataError, UnsupportedModelError
from deepen.evaluate.folders import read_folder, read_hub
from deepen.evaluate.tasks import Task, evenly_spaced

_SEED = 1234  # of the examples, as `lm_eval` has it
_KINDS = {"multiple_choice", "loglikelihood", "generate_until"}
_GROUP_SETTINGS = ("tag", "group", "task_list")


class Leaf(ConfigurableTask):  # type: ignore[misc]
    """One of lm-eval's tasks, over rows that are read already.

    Args:
        name: of the task.
        file: its task file.
        settings: what is set otherwise.
        data: the folder of local data sets; None for the Hub.
        columns: that the data must have.
    """

    def __init__(self, name: str, file: Path, settings: Mapping[str, Any], data: Path | None, columns: Sequence[str]) -> None:
        config = load_yaml(file, resolve_func=True)
        if "class" in config or config.get("output_type") not in _KINDS or config.get("doc_to_image"):
            raise UnsupportedModelError(
                f"the task {name} is of a kind that is not run here", where="--tasks", next="use tasks of choice or generation"
            )
        for key in _GROUP_SETTINGS:
            config.pop(key, None)
        self._source, self._place, self._columns = str(config["dataset_path"]), data, columns
        super().__init__(config=config | {"task": name} | dict(settings))
        self._config.metadata = {**(self._config.metadata or {}), "config_source": str(file)}

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **_: Any) -> None:
        """Read the rows; called by lm-eval."""
        arguments = {key: value for key, value in (dataset_kwargs or {}).items() if key != "trust_remote_code"}
        if self._place is None:
            self.dataset = read_hub(self._source, self.config.dataset_name, arguments)
            return
        folder = locate(self._place, self._source)
        self.dataset = read_folder(folder, self.config.dataset_name, self._columns)
        self.config.dataset_path = str(folder)
        scored = self.config.test_split or self.config.validation_split
        for split in {scored, self.config.fewshot_split or self.config.training_split or scored}:
            if split not in self.dataset:
                raise DataError(
                    f"no split {split!r} of the data set {self._source}, which {self.config.task} needs; "
                    f"there are {', '.join(sorted(self.dataset))}",
                    where=folder,
                    next=f"put its files there, as {self._source} has them",
                )

    @cached_property
    def eval_docs(self) -> Any:
        """The rows to answer; a property there that works them out each time."""
        return super().eval_docs

    def build(self, shots: int, rows: Sequence[int]) -> None:
        """Make the requests for some rows, with so many solved examples before each."""
        self.set_config("num_fewshot", shots)
        self.set_fewshot_seed(_SEED)
        self._instances = None
        everything = len(rows) == len(self.eval_docs)
        super().build_all_requests(samples=None if everything else list(rows))

    def build_all_requests(self, **_: Any) -> None:
        """They are made already."""


def open_leaves(task: Task, data: Path | None) -> dict[str, Leaf]:
    """The leaves of a task: itself, or MMLU's subjects.

    Raises:
        DataError, NetworkError: the data is missing, or lacks a split or a column.
        UnsupportedModelError: a task that neither chooses nor generates.
    """
    leaves = {}
    with quiet():
        for name, file in task.files.items():
            settings = dict(task.settings)
            if task.shots is not None:
                settings["num_fewshot"] = task.shots
            with _data_errors(name):
                leaves[name] = Leaf(name, file, settings, data, task.columns)
    return leaves


def build(leaves: Mapping[str, Leaf], shots: int, limit: int | None) -> dict[str, list[int]]:
    """Make the requests of a task's leaves; returns the rows of each that they are of.

    Raises:
        DataError: a row lacks what the prompt is made of.
    """
    rows = {}
    with quiet():
        for name, leaf in leaves.items():
            rows[name] = evenly_spaced(len(leaf.eval_docs), limit)
            with _data_errors(name):
                leaf.build(shots, rows[name])
    return rows


class _Answered(LM):  # type: ignore[misc]
    """Gives lm-eval the answers that are known, by request."""

    def __init__(self, answers: Mapping[int, Any]) -> None:
        super().__init__()
        self._answers = answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        return [self._answers[id(request)] for request in requests]

    def generate_until(self, requests: Sequence[Any]) -> list[Any]:
        return [self._answers[id(request)] for request in requests]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[Any]:
        raise NotImplementedError


def score(leaves: Mapping[str, Leaf], rows: Mapping[str, Sequence[int]], answers: Mapping[int, Any]) -> dict[str, Any]:
    """lm-eval's results for the answers, with its `samples`.

    Args:
        leaves: their requests are made.
        rows: of each leaf.
        answers: to each request, by its `id`.
    """
    chosen = {name: list(rows[name]) for name, leaf in leaves.items() if len(rows[name]) < len(leaf.eval_docs)}
    with quiet():
        results: dict[str, Any] = evaluate(_Answered(answers), {"tasks": dict(leaves), "groups": {}}, samples=chosen or None)
    return results


@contextmanager
def quiet() -> Iterator[None]:
    """Without the bars and warnings of lm-eval and of `datasets`; errors stay what they are."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    bars = datasets.are_progress_bars_disabled()
    logger.setLevel(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()


@contextmanager
def _data_errors(name: str) -> Iterator[None]:
    """What a prompt's making raises when a row lacks something."""
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError, jinja2.UndefinedError, AssertionError) as error:
        said = str(error).strip() or type(error).__name__
        raise DataError(
            f"the data of {name} has not the form that lm-eval expects ({type(error).__name__}: {said[:200]})",
            where="--data",
            next="give the data set in the form that it has on the Hub",
        ) from error
