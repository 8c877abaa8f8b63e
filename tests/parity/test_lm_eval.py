"""Our benchmarks against lm-eval itself: its own model class, its own loading, its own batches, on the same task files."""

import warnings

import datasets
import pytest
import torch
import yaml
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from benchmark_data import write_benchmarks, write_model
from deepen.evaluate.harness import run_tasks
from deepen.evaluate.tasks import definition, evenly_spaced, find

SETS = {
    "arc_challenge": "ai2_arc",
    "hellaswag": "hellaswag",
    "mmlu": "cais_mmlu",
    "truthfulqa_mc2": "truthful_qa",
    "winogrande": "winogrande",
    "gsm8k": "gsm8k",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    subjects = [definition(file)["dataset_name"] for file in find("mmlu").files.values()]
    return write_benchmarks(tmp_path_factory.mktemp("data"), subjects)


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def model(request, tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "tiny", dtype=request.param)


def reference(model, data, name, rows, batch_size, folder, monkeypatch, leaves=None):
    """lm-eval's results by its own means; `rows` of `limit`, and `leaves` of MMLU."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder / "cache"))
    task = find(name)
    chosen = {leaf: file for leaf, file in task.files.items() if leaves is None or leaf in leaves}
    files = folder / "tasks"
    files.mkdir()
    for leaf, file in chosen.items():
        settings = {"include": str(file), "task": leaf, "dataset_path": str(data / SETS[name])}
        settings |= {"num_fewshot": task.shots, **task.settings}
        (files / f"{leaf}.yaml").write_text(yaml.safe_dump(settings))
    manager = TaskManager(include_path=str(files), include_defaults=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        network = HFLM(pretrained=str(model), device="cpu", batch_size=batch_size, dtype="auto")
        return simple_evaluate(model=network, tasks=list(chosen), task_manager=manager, samples=dict.fromkeys(chosen, rows))


def numbers(results):
    return {key: float(value) for key, value in results.items() if "," in key}


def likelihoods(sample):
    return [response[0][0] for response in sample["resps"]]


@pytest.mark.parametrize("batch_size", [3])
@pytest.mark.parametrize("name", ["arc_challenge", "hellaswag", "truthfulqa_mc2", "winogrande"])
def test_choices_are_those_of_lm_eval(model, data, name, batch_size, tmp_path, monkeypatch):
    ours = run_tasks(model, [name], data=data, limit=5, batch_size=batch_size)
    theirs = reference(model, data, name, evenly_spaced(7, 5), batch_size, tmp_path, monkeypatch)
    wanted = numbers(theirs["results"][name])
    assert numbers(ours.lm_eval["results"][name]) == pytest.approx(wanted, rel=1e-6)  # mc2 is no count
    result = ours.tasks[name]
    key = f"{result.metric},none"
    assert result.value == pytest.approx(wanted[key], rel=1e-6)
    assert result.stderr == pytest.approx(wanted[f"{result.metric}_stderr,none"], rel=1e-6)
    samples = theirs["samples"][name]
    assert [item.score for item in result.items] == pytest.approx([float(each[result.metric]) for each in samples], rel=1e-5)
    exact = "bfloat16" in (model / "config.json").read_text()  # where a tie is common, the last bit decides
    for item, sample in zip(result.items, samples, strict=True):
        assert item.key.startswith(f"{name}/{sample['doc_id']}-")
        assert item.facts["log_likelihoods"] == pytest.approx(likelihoods(sample), rel=0 if exact else 1e-5, abs=0)


def test_a_subject_of_mmlu_is_that_of_lm_eval(model, data, tmp_path, monkeypatch):
    leaves = ["mmlu_anatomy", "mmlu_virology", "mmlu_world_religions"]
    ours = run_tasks(model, ["mmlu"], data=data, batch_size=2)
    theirs = reference(model, data, "mmlu", [0, 1, 2], 2, tmp_path, monkeypatch, leaves)
    exact = "bfloat16" in (model / "config.json").read_text()
    for leaf in leaves:
        assert numbers(ours.lm_eval["results"][leaf]) == numbers(theirs["results"][leaf])
        items = [item for item in ours.tasks["mmlu"].items if item.key.startswith(f"{leaf}/")]
        for item, sample in zip(items, theirs["samples"][leaf], strict=True):
            assert item.facts["log_likelihoods"] == pytest.approx(likelihoods(sample), rel=0 if exact else 1e-5, abs=0)


def test_generated_answers_are_those_of_lm_eval(model, data, tmp_path, monkeypatch):
    ours = run_tasks(model, ["gsm8k"], data=data, batch_size=2)
    theirs = reference(model, data, "gsm8k", [0, 1, 2], 2, tmp_path, monkeypatch)
    assert numbers(ours.lm_eval["results"]["gsm8k"]) == numbers(theirs["results"]["gsm8k"])
    strict = [sample for sample in theirs["samples"]["gsm8k"] if sample["filter"] == "strict-match"]
    assert [item.facts["text"] for item in ours.tasks["gsm8k"].items] == [sample["resps"][0][0] for sample in strict]
    assert ours.tasks["gsm8k"].facts["flexible_extract"] == theirs["results"]["gsm8k"]["exact_match,flexible-extract"]
