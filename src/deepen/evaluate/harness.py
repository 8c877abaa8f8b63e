"""Benchmarks by lm-eval: its tasks, prompts and metrics; our loading, order of work, rows and cache."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from deepen.energy import Meter, open_meter
from deepen.errors import DataError, OptionError
from deepen.evaluate.results import Item, TaskResult
from deepen.evaluate.sequences import Answer, Pair, Sequences
from deepen.evaluate.statistics import mean_interval
from deepen.evaluate.tasks import SUBJECTS, Task, check_limit, expand, find, version
from deepen.progress import Advance, progress

if TYPE_CHECKING:
    from deepen.evaluate.stock import Leaf

BATCH_SIZE = 8
"""Fixed, since scores move a little with it."""

_USUAL_METRICS = ("acc_norm", "acc", "exact_match", "pct_stereotype", "f1", "likelihood_diff")
_SHOWN_CHARACTERS = 1500  # of a prompt's end
_GENERATED = 256  # tokens of an answer unless the task says otherwise, as in lm-eval


@dataclass(frozen=True)
class Harness:
    """What the benchmarks gave.

    Attributes:
        tasks: by name.
        lm_eval: lm-eval's own results, as its `results_*.json` has them.
        notes: what the reader of a number must know of it.
    """

    tasks: dict[str, TaskResult]
    lm_eval: dict[str, Any]
    notes: list[str]


class Model(Protocol):
    """A model that answers benchmarks, in whatever engine."""

    window: int | None
    """Tokens of prompt and answer together; None where that is not known."""

    def encode(self, context: str, continuation: str) -> Pair:
        """The tokens of a context and of its continuation."""
        ...

    def count(self, text: str) -> int:
        """Tokens of a prompt."""
        ...

    def arrange(self, pairs: Sequence[Pair]) -> Sequences:
        """What is run for these pairs, in which order."""
        ...

    def log_likelihoods(self, sequences: Sequences) -> Iterator[tuple[int, dict[int, Answer]]]:
        """Pieces of work done: tokens run, and answers by the number of the pair."""
        ...

    def generate(self, requests: Sequence[Any]) -> list[str]:
        """The texts that follow the prompts of some of lm-eval's requests, run as one batch."""
        ...


@dataclass
class _Job:
    """A task with its requests, and what must be run for them."""

    task: Task
    leaves: dict[str, Leaf]
    rows: dict[str, list[int]]
    shots: int
    version: str
    scored: list[Any] = field(default_factory=list)
    generated: list[Any] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    runs: Sequences = ()
    lengths: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return sum(run.width - run.kept for run in self.runs) + sum(self.lengths) + _GENERATED * len(self.generated)


def run_tasks(
    model: str | Path,
    names: Sequence[str],
    *,
    data: Path | None = None,
    limit: int | None = None,
    batch_size: int = BATCH_SIZE,
    device: str | None = None,
    dtype: str | None = None,
    plan: Mapping[str, Any] | None = None,
    engine: str = "auto",
    reduce_shots: bool = False,
    cache: bool = True,
) -> Harness:
    """Let a model answer benchmarks.

    The values are those of lm-eval with the same task files, rows, batch size and type.

    Args:
        model: a checkpoint folder, a Hub id or a `.gguf` file, or with a URL as engine the model's name there.
        names: of suites (`h6`, `h4`) and tasks: the suites', or any single one of lm-eval that chooses or generates.
        data: a folder of data sets in the Hub's layout; the Hub unless given.
        limit: so many rows of each task (of MMLU, of each subject), evenly spaced.
        batch_size: sequences at once.
        device: where a checkpoint runs; the CPU by default.
        dtype: what a checkpoint is computed in; its own by default.
        plan: a layer plan's options: the deepened model answers without being written.
        engine: `auto`, `transformers`, `llamacpp` or a URL.
        reduce_shots: give fewer solved examples where they do not fit the model's window, instead of refusing.
        cache: keep answers, and take those that are kept.

    Returns:
        The tasks' results, with their rows.

    Raises:
        OptionError: a name that is none, or a limit or batch size below 1.
        DataError: data is missing, or a prompt does not fit the model's window.
        NetworkError: the Hub cannot be reached.
        CheckpointError, UnsupportedModelError, PlanError: as `deepen.load`.
    """
    tasks = [find(name) for name in expand(names)]
    check_limit(limit)
    if batch_size < 1:
        raise OptionError(f"a batch of {batch_size} is none", where="--batch-size", next="use 1 or more")
    from deepen.evaluate.stock import build, open_leaves

    jobs = []
    for task in tasks:
        leaves = open_leaves(task, data)
        shots = _shots(leaves)
        marks = [f"{version(file, task.settings)}" for file in task.files.values()]
        jobs.append(_Job(task, leaves, build(leaves, shots, limit), shots, marks[0]))
    answerer = _open(model, batch_size=batch_size, device=device, dtype=dtype, plan=plan, engine=engine)
    notes = [note for job in jobs for note in _prepare(job, answerer, limit, reduce_shots)]
    results: dict[str, TaskResult] = {}
    own: dict[str, Any] = {}
    with (
        open_meter() as meter,
        progress("Evaluating", sum(job.tokens for job in jobs), "tokens") as advance,
    ):
        for job in jobs:
            results[job.task.name], found = _run(job, answerer, batch_size, meter, advance)
            for key, value in found.items():
                own.setdefault(key, {}).update(value)
    facts = {"model": "deepen", "model_args": {"pretrained": str(model), **(plan or {})}, "batch_size": batch_size}
    seeds = {"random_seed": 0, "numpy_seed": 1234, "torch_seed": 1234, "fewshot_seed": 1234}
    own["config"] = {**facts, "device": device, "dtype": dtype, "limit": limit, "engine": engine, **seeds}
    own |= {"lm_eval_version": installed("lm-eval"), "transformers_version": installed("transformers"), "date": time.time()}
    return Harness(results, own, notes)


def _open(
    model: str | Path,
    *,
    batch_size: int,
    device: str | None,
    dtype: str | None,
    plan: Mapping[str, Any] | None,
    engine: str,
) -> Model:
    from deepen.errors import CheckpointError
    from deepen.evaluate.language_model import TransformersModel
    from deepen.model import load

    del engine
    network, tokenizer = load(model, plan, dtype=dtype, device=device)
    if tokenizer is None:
        raise CheckpointError("the checkpoint has no tokenizer", where=model, next="put its tokenizer files beside the weights")
    return TransformersModel(network, tokenizer, batch_size)


def _shots(leaves: Mapping[str, Leaf]) -> int:
    return max(leaf.config.num_fewshot or 0 for leaf in leaves.values())


def _prepare(job: _Job, model: Model, limit: int | None, reduce_shots: bool) -> list[str]:
    """Work out what must be run, and refuse what does not fit before anything runs; returns what to say of it."""
    from deepen.evaluate.stock import build

    notes = []
    longest = _encode(job, model)
    if model.window is not None and longest > model.window:
        window, needed, asked = model.window, longest, job.shots
        if not reduce_shots or asked == 0:
            raise DataError(
                f"a prompt of {job.task.name} has {needed} tokens with {asked} solved examples, "
                f"but the model's window holds {window}",
                where="--tasks",
                next="use a model with a longer window" + (", or pass --reduce-shots" if asked else ""),
            )
        while longest > window and job.shots > 0:
            job.shots -= 1
            build(job.leaves, job.shots, limit)
            longest = _encode(job, model)
        if longest > window:
            raise DataError(
                f"a prompt of {job.task.name} has {longest} tokens without any solved example, "
                f"but the model's window holds {window}",
                where="--tasks",
                next="use a model with a longer window",
            )
        notes.append(
            f"{job.task.name}: {job.shots} solved examples instead of {asked}, whose {needed} tokens the window of "
            f"{window} does not hold: not comparable with {asked}-shot values"
        )
    job.runs = model.arrange(job.pairs)
    total = sum(len(leaf.eval_docs) for leaf in job.leaves.values())
    taken = sum(map(len, job.rows.values()))
    if taken < total:
        each = f", {limit} of each of {len(job.leaves)} subjects" if len(job.leaves) > 1 else ""
        notes.append(f"{job.task.name}: {taken:,} of {total:,} rows, evenly spaced{each}")
    return notes


def _encode(job: _Job, model: Model) -> int:
    """Tokenise a task's requests; returns the longest, with its answer."""
    requests = [request for leaf in job.leaves.values() for request in leaf.instances]
    job.scored = [request for request in requests if request.request_type == "loglikelihood"]
    job.generated = [request for request in requests if request.request_type == "generate_until"]
    job.pairs = [model.encode(*request.args) for request in job.scored]
    job.lengths = [model.count(request.args[0]) for request in job.generated]
    scored = [len(pair.context) + len(pair.continuation) - 1 for pair in job.pairs]
    room = [_room(request) for request in job.generated]
    return max([*scored, *(length + more for length, more in zip(job.lengths, room, strict=True))])


def _room(request: Any) -> int:
    settings = request.args[1]
    return int(settings.get("max_gen_toks") or settings.get("max_new_tokens") or settings.get("max_tokens") or _GENERATED)


def _run(
    job: _Job, model: Model, batch_size: int, meter: Meter, advance: Advance
) -> tuple[TaskResult, dict[str, dict[str, Any]]]:
    """Answer a task's requests and let lm-eval score the answers."""
    from deepen.evaluate.stock import score

    start, before = time.monotonic(), meter.joules()
    answers: dict[int, Any] = {}
    for tokens, found in model.log_likelihoods(job.runs):
        for number, answer in found.items():
            answers[id(job.scored[number])] = tuple(answer)
        advance(tokens, job.task.name)
    # as lm-eval sorts and batches them, which padding makes a part of the result
    order = sorted(range(len(job.generated)), key=lambda place: (-job.lengths[place], job.generated[place].args[0]))
    for first in range(0, len(order), batch_size):
        batch = order[first : first + batch_size]
        for place, text in zip(batch, model.generate([job.generated[place] for place in batch]), strict=True):
            answers[id(job.generated[place])] = text
            advance(job.lengths[place] + _GENERATED, job.task.name)
    found = score(job.leaves, job.rows, answers)
    seconds, after = time.monotonic() - start, meter.joules()
    joules = None if before is None or after is None else after - before
    return _result(job, found, seconds, joules), {key: found[key] for key in _KEPT} | _group(job, found)


_KEPT = ("results", "configs", "versions", "n-shot", "higher_is_better", "n-samples")


def _group(job: _Job, found: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """MMLU among lm-eval's groups: as the leaderboard's plain mean, where lm-eval's own group weighs subjects by size."""
    if len(job.leaves) == 1:
        return {"group_subtasks": {job.task.name: []}}
    values = [found["results"][name]["acc,none"] for name in job.leaves]
    mean = {"alias": job.task.name, "acc,none": sum(values) / len(values)}
    return {"group_subtasks": {job.task.name: list(job.leaves)}, "groups": {job.task.name: mean}}


def _metric(job: _Job, results: Mapping[str, Any]) -> str:
    """The task's metric as lm-eval's results call it, `name,filter`."""
    known = [key for key in results if "," in key and "_stderr," not in key]
    wanted = [job.task.metric] if job.task.metric else list(_USUAL_METRICS)
    for each in wanted:
        for key in known:
            if each in (key, key.partition(",")[0]):
                return key
    return known[0]


def _result(job: _Job, found: Mapping[str, Any], seconds: float, joules: float | None) -> TaskResult:
    names = list(job.leaves)
    results = found["results"]
    key = _metric(job, results[names[0]])
    metric, _, chosen = key.partition(",")
    items, strata = [], []
    for name in names:
        for sample in found["samples"][name]:
            if sample["filter"] == chosen:
                items.append(_item(name, sample, metric))
                strata.append(name)
    scores = [item.score for item in items]
    facts: dict[str, Any] = {"metrics": _metrics(results, names)}
    value, error, low, high = mean_interval(scores, strata=strata)
    if len(names) > 1:
        assert len(names) == SUBJECTS
        facts["subjects"] = {
            name.removeprefix("mmlu_"): {
                "value": results[name][key],
                "stderr": _number(results[name].get(f"{metric}_stderr,{chosen}")),
                "n": found["n-samples"][name]["effective"],
            }
            for name in names
        }
    else:
        value = float(results[names[0]][key])
    if metric == "exact_match" and f"{metric},flexible-extract" in results[names[0]]:
        facts["flexible_extract"] = results[names[0]][f"{metric},flexible-extract"]
    return TaskResult(
        name=job.task.name,
        metric=metric,
        value=value,
        stderr=error,
        low=low,
        high=high,
        n=len(items),
        rows=sum(len(leaf.eval_docs) for leaf in job.leaves.values()),
        shots=job.shots,
        version=job.version,
        seconds=round(seconds, 3),
        energy_joules=joules,
        facts=facts,
        items=tuple(items),
    )


def _metrics(results: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Every metric of lm-eval's, its name without the filter where that is none; of subjects their plain mean."""
    found = {}
    for key in results[names[0]]:
        if "," in key and "_stderr," not in key:
            values = [_number(results[name].get(key)) for name in names]
            known = [each for each in values if each is not None]
            found[key.removesuffix(",none")] = sum(known) / len(names) if len(known) == len(names) else None
    return found


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if number == number else None  # noqa: PLR0124  not a number


def _item(leaf: str, sample: Mapping[str, Any], metric: str) -> Item:
    """One row as it was answered, from lm-eval's log of it."""
    prompt = str(sample["arguments"][0][0])
    facts: dict[str, Any] = {"question": prompt[-_SHOWN_CHARACTERS:]}
    if isinstance(sample["resps"][0][0], str):
        facts |= {"answer": sample["filtered_resps"][0], "text": sample["resps"][0][0], "target": str(sample["target"])}
    else:
        choices = [str(arguments[1]).strip() for arguments in sample["arguments"]]
        if len(set(choices)) == 1 < len(choices):  # the choice is in the prompt and what follows is the same
            choices = [str(arguments[0])[-_SHOWN_CHARACTERS:] for arguments in sample["arguments"]]
        likelihoods = [float(response[0][0]) for response in sample["resps"]]
        facts |= {"choices": choices, "log_likelihoods": likelihoods, "target": sample["target"]}
        scaled = [each / len(choice) for each, choice in zip(likelihoods, choices, strict=True) if choice]
        use = scaled if metric == "acc_norm" and len(scaled) == len(choices) else likelihoods
        facts["answer"] = choices[max(range(len(use)), key=use.__getitem__)]
        if isinstance(sample["target"], int) and sample["target"] < len(choices):
            facts["target"] = choices[sample["target"]]
    if leaf.startswith("mmlu_"):
        facts["subject"] = leaf.removeprefix("mmlu_")
    facts["doc"] = sample["doc"]
    score = _number(sample.get(metric))
    return Item(f"{leaf}/{sample['doc_id']}-{sample['doc_hash'][:12]}", 0.0 if score is None else score, facts)
