"""Two models on the same rows and the same text: what separates them, what may be said, and what is refused."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from deepen.errors import DataError, OptionError
from deepen.evaluate import evaluate
from deepen.evaluate.compare import compare
from deepen.evaluate.results import Item, TaskResult
from trainable import write_checkpoint, write_text


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, one that predicts worse, one with another tokenizer, one text and rows of text."""
    folder = tmp_path_factory.mktemp("compare")
    write_checkpoint(folder / "model", initializer_range=0.02)
    write_checkpoint(folder / "worse", initializer_range=0.3)
    write_checkpoint(folder / "words", initializer_range=0.02, vocab_size=258)
    content = json.loads((folder / "words/tokenizer.json").read_text())
    content["model"]["vocab"]["th"] = 257  # "th" is one token
    content["model"]["merges"] = [["t", "h"]]
    (folder / "words/tokenizer.json").write_text(json.dumps(content))
    text = write_text(folder / "text.txt", 150).read_text()
    rows = [text[first : first + 60] for first in range(0, 720, 60)]
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return folder


def test_the_same_tokens_are_compared_token_by_token(places: Path) -> None:
    report = evaluate(places / "model", data=places / "rows.jsonl", window=64, compare=[places / "worse"])
    (found,) = report.comparisons[str(places / "worse")].values()
    own, other = report.results["perplexity"], report.others[str(places / "worse")]["perplexity"]
    assert found.difference == pytest.approx(own.facts["nats_per_token"] - other.facts["nats_per_token"])
    assert found.difference == pytest.approx(math.log(own.value / other.value))
    assert (found.unit, found.verdict, found.n, found.p) == ("nats per token", "better", 12, None)
    assert found.high is not None
    assert found.high < 0
    report = evaluate(places / "worse", data=places / "rows.jsonl", window=64, compare=places / "model")
    assert report.comparisons[str(places / "model")]["perplexity"].verdict == "worse"


@pytest.mark.parametrize("data", ["rows.jsonl", "text.txt"])
def test_two_tokenizers_are_compared_byte_by_byte(places: Path, data: str) -> None:
    report = evaluate(places / "model", data=places / data, window=128, compare=places / "words")
    (found,) = report.comparisons[str(places / "words")].values()
    own, other = report.results["perplexity"], report.others[str(places / "words")]["perplexity"]
    assert own.n > other.n
    assert found.unit == "bits per byte"
    assert found.difference == pytest.approx(own.facts["bits_per_byte"] - other.facts["bits_per_byte"], abs=0.02)
    assert found.verdict == "worse"  # both are near uniform, and the other needs fewer tokens
    for limit in ({"limit": 2}, {"tokens": 600}):
        with pytest.raises(OptionError, match="have different tokenizers"):
            evaluate(places / "model", data=places / data, window=64, compare=places / "words", **limit)


def test_a_model_is_not_better_than_itself(places: Path) -> None:
    report = evaluate(places / "model", data=places / "text.txt", window=32, compare=[places / "model", places / "model"])
    assert len(report.comparisons) == 2
    for tasks in report.comparisons.values():
        assert tasks["perplexity"].difference == 0
        assert tasks["perplexity"].verdict == "cannot tell"


def test_the_layer_plan_is_the_judged_models_alone(places: Path) -> None:
    """The worse of the two is a child of its own base."""
    report = evaluate(places / "worse", data=places / "text.txt", window=64, repeat="0:2", compare=places / "worse")
    plain = evaluate(places / "worse", data=places / "text.txt", window=64)
    (other,) = report.others.values()
    assert other["perplexity"].value == plain.average != report.average
    assert report.name == f"{places / 'worse'} --repeat 0:2"
    assert report.to_dict()["plan"] == {"repeat": "0:2"}


def made(scores: list[float], name: str = "arc_challenge", **changed: object) -> TaskResult:
    items = tuple(Item(f"{name}/{number}", score) for number, score in enumerate(scores))
    facts = {
        "name": name, "metric": "acc", "value": float(np.mean(scores)), "stderr": None, "low": None, "high": None,
        "n": len(scores), "rows": len(scores), "shots": 0, "version": "1", "seconds": 0.0, "energy_joules": None,
        "items": items,
    }  # fmt: skip
    return TaskResult(**facts | changed)


def test_rows_are_paired_by_their_keys_not_by_their_order() -> None:
    first = made([1.0, 0.0, 1.0, 0.0])
    assert compare({"a": first}, {"a": made([0.5], items=first.items[::-1])})["a"].difference == 0


def test_other_rows_or_other_prompts_are_refused() -> None:
    first = made([1.0, 0.0, 1.0])
    with pytest.raises(DataError, match="1 rows were answered by one model only"):
        compare({"a": first}, {"a": made([1.0, 0.0])})
    with pytest.raises(DataError, match="given 0 solved examples, the other 5"):
        compare({"a": first}, {"a": made([1.0, 0.0, 1.0], shots=5)})


def test_the_average_has_an_interval_too() -> None:
    own = {"a": made([1.0] * 40 + [0.0] * 10), "b": made([1.0] * 30 + [0.0] * 20, "b")}
    other = {"a": made([1.0] * 20 + [0.0] * 30), "b": made([1.0] * 10 + [0.0] * 40, "b")}
    found = compare(own, other)["average"]
    assert found.difference == pytest.approx(0.4)
    assert (found.verdict, found.unit) == ("better", "average")
    assert found.low is not None
    assert 0.2 < found.low < 0.4


def test_subjects_of_mmlu_count_once_each() -> None:
    items = [Item("mmlu_a/0", 1.0), *(Item(f"mmlu_b/{number}", 0.0) for number in range(9))]
    own = made([0.5], items=tuple(items), facts={"subjects": {}}, value=0.5)
    other = made([0.0], items=tuple(Item(item.key, 0.0) for item in items), facts={"subjects": {}}, value=0.0)
    assert compare({"mmlu": own}, {"mmlu": other})["mmlu"].difference == 0.5


@pytest.mark.parametrize(
    ("own", "other", "verdict"), [(0.9, 0.6, "worse"), (0.6, 0.9, "better"), (0.1, 0.4, "worse"), (0.9, 0.1, "cannot tell")]
)
def test_a_bias_is_better_when_it_is_nearer_to_none(own: float, other: float, verdict: str) -> None:
    def scores(share: float) -> list[float]:
        return [float(number < 100 * share) for number in range(100)]

    assert compare({"c": made(scores(own), "crows_pairs")}, {"c": made(scores(other), "crows_pairs")})["c"].verdict == verdict


def test_benchmarks_end_in_one_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MMLU is left out here: it is 57 tasks."""
    from benchmark_data import write_benchmarks, write_model

    monkeypatch.setenv("DEEPEN_CACHE", str(tmp_path / "cache"))
    data, model = write_benchmarks(tmp_path / "data", ["anatomy"]), write_model(tmp_path / "model", dtype=torch.float32)
    names = ["arc_challenge", "hellaswag", "gsm8k"]
    report = evaluate(
        model, tasks=names, data=data, limit=3, compare=model, reference="solar", out=tmp_path / "out", reduce_shots=True
    )
    content = json.loads((tmp_path / "out/report.json").read_text())
    assert list(content["tasks"]) == names
    assert content["average"] == pytest.approx(sum(task["value"] for task in content["tasks"].values()) / 3)
    assert content["average_low"] <= content["average"] <= content["average_high"]
    assert {task["n"] for task in content["tasks"].values()} == {3}
    assert all(each.verdict == "cannot tell" and each.difference == 0 for each in report.comparisons[str(model)].values())
    assert content["versions"]["lm-eval"]
    assert "hellaswag" in json.loads((tmp_path / "out/results.json").read_text())["results"]
    assert len(content["reference"]["rows"]) == 13
    assert (tmp_path / "out/samples/hellaswag.jsonl").read_text().count("\n") == 6


# The command line ----------------------------------------------------------------------------------------------------------


def deepen(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deepen", "evaluate", *map(str, words)], capture_output=True, text=True, timeout=300
    )


def test_several_values_may_follow_an_option(places: Path, tmp_path: Path) -> None:
    text, out = places / "text.txt", tmp_path / "report"
    done = deepen(
        "--data", text, places / "model", places / "rows.jsonl", "--window", 64, "--compare", places / "worse",
        places / "model", "--out", out, "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert content["model"] == str(places / "model")
    assert list(content["comparisons"]) == [str(places / "worse"), str(places / "model")]
    assert content["tasks"]["perplexity"]["documents"] == 13
    assert content["tasks"]["perplexity"]["texts"] == ["text.txt", "rows.jsonl"]
    assert json.loads((out / "report.json").read_text()) == content


def test_the_verdict_is_on_the_terminal(places: Path) -> None:
    done = deepen(
        places / "worse", "--data", places / "text.txt", "--limit", 5, "--window", "64", "--compare", places / "model"
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["task", "metric", "value", "95", "%", "interval", "scored", "shots", "time"]
    assert any(line.startswith("perplexity") and line.endswith("worse") for line in lines)
    assert any("5 of" in line and "windows, evenly spaced" in line for line in lines)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--suite", "h5"], "no suite is called 'h5'\n  Next: did you mean h"),
        (["--tasks", "hellaswagg"], "no task is called 'hellaswagg'; near are hellaswag"),
        (["--suite", "h6", "--limit", "0"], "--limit: 0 rows are none"),
        (["--suite", "h6", "--data", "nowhere"], "nowhere: the folder of benchmark data does not exist"),
        (["--suite", "h6", "--window", "64"], "the suite h6 does not take it\n  Next: leave it away, or use --suite perplex"),
        (["--data", "a.txt", "--reference", "solar"], "--reference: the suite perplexity does not take it"),
        (["--suite", "h6", "--reference", "lunar"], "--reference: no reference is called 'lunar'"),
        (["--suite", "bias", "--tasks", "bbq"], "--tasks: the suite bias does not take it"),
        (["--suite", "perplexity"], "--data: a perplexity needs a text"),
        (["--suite", "contamination", "--data", "a.txt"], "--benchmarks: no benchmark is named"),
        (["--suite", "contamination", "--benchmarks", "gsm8k"], "--data: nothing to compare the benchmarks with"),
        (["--suite", "contamination", "--data", "a.txt", "--benchmarks", "gsm8k", "--drop", "1"], "--plan: it is for Min-K%"),
        (["--suite", "h6", "--batch-size", "0"], "--batch-size: a batch of 0 is none"),
        (["--data", "a.txt", "--drop", "1", "--update-card"], "--update-card: the deepened model is not written anywhere"),
        (["--data", "a.txt", "--engine", "llamacpp"], "--engine: the perplexity of a checkpoint is measured by transformers"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_said_before_a_model_is_loaded(
    words: list[str],
    message: str,
    places: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from deepen.cli import run_program

    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("text")
    (places / "empty").mkdir(exist_ok=True)
    assert run_program(["evaluate", str(places / "empty"), *words]) == 2
    assert message in capsys.readouterr().err


def test_an_existing_report_is_refused_before_the_work(places: Path, tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    done = deepen(places / "model", "--data", places / "text.txt", "--out", tmp_path / "report")
    assert (done.returncode, done.stdout) == (2, "")
    assert "the output exists already" in done.stderr
    assert "Scoring" not in done.stderr


def test_the_card_of_a_model_is_left_alone_unless_asked(places: Path, tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model")
    (model / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    evaluate(model, data=places / "text.txt", window=64)
    assert (model / "README.md").read_text() == "---\nlicense: mit\n---\n# Mine\n"
    evaluate(model, data=places / "text.txt", window=64, update_card=True)
    text = (model / "README.md").read_text()
    assert "license: mit" in text
    assert "type: perplexity" in text
    assert text.endswith("# Mine\n")
