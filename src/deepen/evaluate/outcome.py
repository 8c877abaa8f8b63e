"""From lm-eval's results and samples to ours: the value with its interval, and the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deepen.evaluate.results import Item, TaskResult
from deepen.evaluate.statistics import mean_interval
from deepen.evaluate.tasks import SUBJECTS

if TYPE_CHECKING:
    from deepen.evaluate.harness import Job
    from deepen.evaluate.stock import Leaf

_USUAL_METRICS = ("acc_norm", "acc", "exact_match", "pct_stereotype", "f1", "likelihood_diff")
_SHARES = ("acc_norm", "acc", "exact_match", "pct_stereotype")  # metrics that lie between 0 and 1
_SHOWN_CHARACTERS = 1500  # of a prompt's end


def lm_eval_group(job: Job, found: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """MMLU among lm-eval's groups: as the leaderboard's plain mean, where lm-eval's own group weighs subjects by size."""
    if len(job.leaves) == 1:
        return {"group_subtasks": {job.task.name: []}}
    values = [found["results"][name]["acc,none"] for name in job.leaves]
    mean = {"alias": job.task.name, "acc,none": sum(values) / len(values)}
    return {"group_subtasks": {job.task.name: list(job.leaves)}, "groups": {job.task.name: mean}}


def _metric(job: Job, results: Mapping[str, Any]) -> str:
    """The task's metric as lm-eval's results call it, `name,filter`."""
    known = [key for key in results if "," in key and "_stderr," not in key]
    wanted = [job.task.metric] if job.task.metric else list(_USUAL_METRICS)
    for each in wanted:
        for key in known:
            if each in (key, key.partition(",")[0]):
                return key
    return known[0]


def task_result(job: Job, found: Mapping[str, Any], seconds: float, joules: float | None) -> TaskResult:
    """A task's result.

    Args:
        job: what was asked.
        found: lm-eval's results for its leaves, with samples.
        seconds: that it took.
        joules: that it used; None where that is not measured.
    """
    names = list(job.leaves)
    results = found["results"]
    key = _metric(job, results[names[0]])
    metric, _, chosen = key.partition(",")
    items, strata = [], []
    for name in names:
        for sample in found["samples"][name]:
            if sample["filter"] == chosen:
                items.append(_item(job.leaves[name], name, sample, metric))
                strata.append(name)
    scores = [item.score for item in items]
    facts: dict[str, Any] = {"metrics": _metrics(results, names)}
    value, error, low, high = mean_interval(scores, strata=strata)
    if metric in _SHARES and low is not None and high is not None:
        low, high = max(low, 0.0), min(high, 1.0)  # a probability's bootstrap does not know its bounds
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
    return number if number == number else None


def _item(task: Leaf, leaf: str, sample: Mapping[str, Any], metric: str) -> Item:
    """One row as it was answered, from lm-eval's log of it."""
    asked = task.doc_to_text(sample["doc"])
    question = asked if isinstance(asked, str) else str(sample["arguments"][0][0]).rpartition("\n\n")[2]
    facts: dict[str, Any] = {"question": question[-_SHOWN_CHARACTERS:]}
    if isinstance(sample["resps"][0][0], str):
        facts |= {"answer": sample["filtered_resps"][0], "text": sample["resps"][0][0], "target": str(sample["target"])}
    else:
        choices = [str(arguments[1]).strip() for arguments in sample["arguments"]]
        if len(set(choices)) == 1 < len(choices):  # the choice is in the prompt and what follows is the same
            choices = [str(arguments[0]).rpartition("\n\n")[2] for arguments in sample["arguments"]]
        likelihoods = [float(response[0][0]) for response in sample["resps"]]
        facts |= {"choices": choices, "log_likelihoods": likelihoods, "target": sample["target"]}
        scaled = [each / len(choice) for each, choice in zip(likelihoods, choices, strict=True) if choice]
        use = scaled if metric == "acc_norm" and len(scaled) == len(choices) else likelihoods
        facts["answer"] = choices[max(range(len(use)), key=use.__getitem__)]
        gold = asked if isinstance(asked, int) else sample["target"]
        if isinstance(gold, int) and gold < len(choices):
            facts["target"] = choices[gold]
    if leaf.startswith("mmlu_"):
        facts["subject"] = leaf.removeprefix("mmlu_")
    facts["doc"] = sample["doc"]
    score = _number(sample.get(metric))
    return Item(f"{leaf}/{sample['doc_id']}-{sample['doc_hash'][:12]}", 0.0 if score is None else score, facts)
