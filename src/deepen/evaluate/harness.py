"""Benchmarks by lm-eval: its tasks, prompts and metrics; our loading, order of work, choice of rows and kept answers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepen.energy import Meter, open_meter
from deepen.errors import DataError, OptionError
from deepen.evaluate.cache import Kept, kept_answers, request_hash
from deepen.evaluate.models import NEW_TOKENS, Model, Prompt, open_model
from deepen.evaluate.outcome import lm_eval_group, task_result
from deepen.evaluate.results import TaskResult
from deepen.evaluate.sequences import Run, remaining
from deepen.evaluate.tasks import Task, check_limit, expand, find, version
from deepen.progress import Advance, progress

if TYPE_CHECKING:
    from deepen.evaluate.stock import Leaf

BATCH_SIZE = 8
"""Fixed, since scores move a little with it."""

_FROM_LM_EVAL = ("results", "configs", "versions", "n-shot", "higher_is_better", "n-samples")
_SEEDS = {"random_seed": 0, "numpy_seed": 1234, "torch_seed": 1234, "fewshot_seed": 1234}


@dataclass(frozen=True)
class Harness:
    """What the benchmarks gave.

    Attributes:
        tasks: by name.
        lm_eval: lm-eval's own results, in the form of its `results_*.json`.
        notes: what the reader of a number must know of it.
    """

    tasks: dict[str, TaskResult]
    lm_eval: dict[str, Any]
    notes: list[str]


@dataclass
class Job:
    """A task with its requests, and what must be run for them.

    Attributes:
        task: what is asked.
        leaves: lm-eval's tasks: one, or MMLU's subjects.
        rows: the rows of each leaf that are asked.
        shots: solved examples in each prompt.
        version: of the task.
        requests: lm-eval's, of all leaves in order; answers go by their number.
        texts: context and continuation of each, if answers are chosen from.
        runs: what scores the texts.
        prompts: of the requests, if answers are generated.
        lengths: of the prompts, in tokens.
    """

    task: Task
    leaves: dict[str, Leaf]
    rows: dict[str, list[int]]
    shots: int
    version: str
    requests: list[Any] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    prompts: list[Prompt] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    def batches(self, batch_size: int) -> Iterator[list[int]]:
        """Numbers of the prompts that go together, as lm-eval sorts and batches them: padding is a part of the result."""
        order = sorted(range(len(self.prompts)), key=lambda place: (-self.lengths[place], self.prompts[place].text))
        return (order[first : first + batch_size] for first in range(0, len(order), batch_size))

    def cost(self, batch_size: int, kept: Kept) -> int:
        """Tokens that are still to be run; answers are counted at their longest."""
        scored = sum(run.cost for run in remaining(self.runs, kept.answers.keys()))
        batches = [batch for batch in self.batches(batch_size) if not kept.answers.keys() >= set(batch)]
        return scored + sum(self.lengths[place] + self.prompts[place].new_tokens for batch in batches for place in batch)


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

    The values are those of lm-eval with the same task file, rows, batch size and type, one task at a time.

    Args:
        model: a checkpoint folder, a Hub id or a `.gguf` file; with a URL as engine, the model's name there.
        names: of suites (`h6`, `h4`) and tasks: the suites', or any single one of lm-eval's that chooses or generates.
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
        OptionError: a name that is none, a limit or batch size below 1, or an option that the engine does not have.
        DataError: data is missing, or a prompt does not fit the model's window.
        NetworkError: the Hub or a server cannot be reached.
        UnsupportedModelError: the engine gives no log-probabilities, or a task is of another kind.
        CheckpointError, PlanError: as `deepen.load`.
    """
    tasks = [find(name) for name in expand(names)]
    check_limit(limit)
    if batch_size < 1:
        raise OptionError(f"a batch of {batch_size} is none", where="--batch-size", next="use 1 or more")
    jobs = [_open_job(task, data, limit) for task in tasks]
    results: dict[str, TaskResult] = {}
    own: dict[str, Any] = {}
    with (
        closing(open_model(model, batch_size=batch_size, device=device, dtype=dtype, plan=plan, engine=engine)) as answerer,
        open_meter() as meter,
        ExitStack() as stack,
    ):
        notes = [note for job in jobs for note in _prepare(job, answerer, limit, reduce_shots)]
        kept = [stack.enter_context(kept_answers(job.task.name, _identity(job, answerer) if cache else None)) for job in jobs]
        total = sum(job.cost(batch_size, answers) for job, answers in zip(jobs, kept, strict=True))
        advance = stack.enter_context(progress("Evaluating", total, "tokens"))
        for job, answers in zip(jobs, kept, strict=True):
            results[job.task.name], found = _run(job, answerer, batch_size, answers, meter, advance)
            for key, value in found.items():
                own.setdefault(key, {}).update(value)
        own["config"] = {
            "model": answerer.engine,
            "model_args": {"pretrained": str(model), **(plan or {})},
            "batch_size": batch_size,
            "device": device,
            "dtype": dtype,
            "limit": limit,
            **_SEEDS,
        }
    own |= {"lm_eval_version": installed("lm-eval"), "transformers_version": installed("transformers"), "date": time.time()}
    return Harness(results, own, notes)


def _open_job(task: Task, data: Path | None, limit: int | None) -> Job:
    from deepen.evaluate.stock import build, open_leaves

    leaves = open_leaves(task, data)
    shots = max(leaf.config.num_fewshot or 0 for leaf in leaves.values())
    return Job(task, leaves, build(leaves, shots, limit), shots, version(task))


def _prepare(job: Job, model: Model, limit: int | None, reduce_shots: bool) -> list[str]:
    """Work out what must be run, and refuse what does not fit before anything runs; returns what to say of it."""
    from deepen.evaluate.stock import build

    notes = []
    name, window, asked = job.task.name, model.window, job.shots
    longest = needed = _encode(job, model)
    if window is not None and longest > window:
        if asked and not reduce_shots:
            raise _too_long(name, longest, asked, window, "use a model with a longer window, or pass --reduce-shots")
        while longest > window and job.shots:
            job.shots -= 1
            build(job.leaves, job.shots, limit)
            longest = _encode(job, model)
        if longest > window:
            raise _too_long(name, longest, 0, window, "use a model with a longer window")
        notes.append(
            f"{name}: {job.shots} solved examples instead of {asked}, whose {needed:,} tokens the window of {window:,} does "
            f"not hold; not to be compared with {asked}-shot values"
        )
    total = sum(len(leaf.eval_docs) for leaf in job.leaves.values())
    taken = sum(map(len, job.rows.values()))
    if taken < total:
        each = f", {limit} of each of {len(job.leaves)} subjects" if len(job.leaves) > 1 else ""
        notes.append(f"{name}: {taken:,} of {total:,} rows, evenly spaced{each}")
    return notes


def _too_long(name: str, longest: int, shots: int, window: int, advice: str) -> DataError:
    return DataError(
        f"a prompt of {name} has {longest:,} tokens with {shots} solved examples, but the model's window holds {window:,}",
        where=name,
        next=advice,
    )


def _encode(job: Job, model: Model) -> int:
    """Tokenise a task's requests; returns the tokens of the longest, with its answer."""
    job.requests = [request for leaf in job.leaves.values() for request in leaf.instances]
    job.texts, job.prompts = [], []
    for request in job.requests:
        if request.request_type == "loglikelihood":
            job.texts.append(request.args)
        else:
            job.prompts.append(_prompt(request))
    job.runs, scored = model.arrange(job.texts)
    job.lengths = [model.count(prompt.text) for prompt in job.prompts]
    generated = [length + prompt.new_tokens for length, prompt in zip(job.lengths, job.prompts, strict=True) if length]
    return max([scored, *generated])


def _prompt(request: Any) -> Prompt:
    text, settings = request.args
    until = settings.get("until") or ()
    names = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
    new_tokens = next((int(settings[name]) for name in names if settings.get(name)), NEW_TOKENS)
    return Prompt(text, (until,) if isinstance(until, str) else tuple(until), new_tokens, request)


def _identity(job: Job, model: Model) -> Mapping[str, Any] | None:
    if model.identity is None:
        return None
    return {**model.identity, "requests": request_hash((request.request_type, request.args) for request in job.requests)}


def _run(
    job: Job, model: Model, batch_size: int, kept: Kept, meter: Meter, advance: Advance
) -> tuple[TaskResult, dict[str, dict[str, Any]]]:
    """Answer a task's requests and let lm-eval score the answers."""
    from deepen.evaluate.stock import score

    start, before = time.monotonic(), meter.joules()
    for tokens, answers in model.answers(job.texts, job.runs, kept.answers.keys()):
        kept.add(answers)
        advance(tokens, job.task.name)
    for batch in job.batches(batch_size):
        if not kept.answers.keys() >= set(batch):
            prompts = [job.prompts[place] for place in batch]
            kept.add(dict(zip(batch, model.generate(prompts), strict=True)))
            advance(sum(job.lengths[place] + job.prompts[place].new_tokens for place in batch), job.task.name)
    known = {id(request): kept.answers[number] for number, request in enumerate(job.requests)}
    found = score(job.leaves, job.rows, known)
    seconds, after = time.monotonic() - start, meter.joules()
    result = task_result(job, found, seconds, None if before is None or after is None else after - before)
    return result, {key: found[key] for key in _FROM_LM_EVAL} | lm_eval_group(job, found)
