"""Benchmarks as deepen runs them: limits, windows, what is kept, what is refused, and what it leaves alone."""

import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
from contextlib import closing

import pytest

from benchmark_data import write_benchmarks, write_model
from deepen.engine.llamacpp import LlamacppEngine
from deepen.errors import CheckpointError, DataError, NetworkError, OptionError, UnsupportedModelError
from deepen.evaluate import cache
from deepen.evaluate.harness import run_tasks
from deepen.evaluate.language_model import TransformersModel
from deepen.evaluate.tasks import definition, find
from tinygguf import write_tiny_gguf


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    subjects = [definition(file)["dataset_name"] for file in find("mmlu").files.values()]
    return write_benchmarks(tmp_path_factory.mktemp("data"), subjects)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "evaluate"


@pytest.fixture
def runs(monkeypatch):
    """How many sequences the model has run."""
    counted = []
    plain = TransformersModel._logits

    def counting(self, fed, *rest, **past):
        counted.append(fed.shape)
        return plain(self, fed, *rest, **past)

    monkeypatch.setattr(TransformersModel, "_logits", counting)
    return counted


def likelihoods(harness, name):
    return [item.facts["log_likelihoods"] for item in harness.tasks[name].items]


def test_mmlu_is_one_value_the_plain_mean_of_57_subjects(model, data):
    harness = run_tasks(model, ["mmlu"], data=data, limit=1)
    (result,) = harness.tasks.values()
    subjects = result.facts["subjects"]
    assert len(subjects) == 57
    assert result.value == pytest.approx(statistics.fmean(subject["value"] for subject in subjects.values()))
    assert (result.n, result.rows, result.shots, result.metric) == (57, 171, 5, "acc")
    assert {item.facts["subject"] for item in result.items} == subjects.keys()
    assert harness.notes == ["mmlu: 57 of 171 rows, evenly spaced, 1 of each of 57 subjects"]
    assert harness.lm_eval["groups"]["mmlu"]["acc,none"] == pytest.approx(result.value)
    assert len(harness.lm_eval["results"]) == 57


def test_an_interval_of_a_share_ends_at_0_and_1(model, data):
    result = run_tasks(model, ["truthfulqa_mc2"], data=data, limit=2).tasks["truthfulqa_mc2"]
    assert 0 <= result.low <= result.value <= result.high <= 1


def test_what_others_read_of_lm_eval_is_json(model, data):
    own = run_tasks(model, ["arc_challenge", "truthfulqa_mc2"], data=data, limit=3).lm_eval
    again = json.loads(json.dumps(own))
    assert again == own
    assert own["n-shot"] == {"arc_challenge": 25, "truthfulqa_mc2": 0}
    assert own["n-samples"]["arc_challenge"] == {"original": 7, "effective": 3}
    assert own["configs"]["arc_challenge"]["num_fewshot"] == 25
    assert own["higher_is_better"]["arc_challenge"] == {"acc": True, "acc_norm": True}


def test_rows_tell_what_was_asked_and_answered(model, data):
    harness = run_tasks(model, ["arc_challenge", "winogrande"], data=data, limit=3)
    for item in (*harness.tasks["arc_challenge"].items, *harness.tasks["winogrande"].items):
        facts = item.facts
        assert facts["answer"] in facts["choices"]
        assert facts["target"] in facts["choices"]
        assert len(facts["log_likelihoods"]) == len(facts["choices"])
    for item in harness.tasks["winogrande"].items:
        assert (item.facts["answer"] == item.facts["target"]) == (item.score == 1)
    keys = [item.key for item in harness.tasks["arc_challenge"].items]
    assert [key.split("-")[0] for key in keys] == ["arc_challenge/0", "arc_challenge/2", "arc_challenge/4"]


def test_a_finished_task_is_not_run_again(model, data, own_cache, runs):
    first = run_tasks(model, ["hellaswag"], data=data, limit=4)
    ran = len(runs)
    assert ran > 0
    second = run_tasks(model, ["hellaswag", "truthfulqa_mc2"], data=data, limit=4)
    assert likelihoods(second, "hellaswag") == likelihoods(first, "hellaswag")
    assert second.tasks["hellaswag"].items == first.tasks["hellaswag"].items
    other = len(runs) - ran
    run_tasks(model, ["truthfulqa_mc2"], data=data, limit=4, cache=False)
    assert len(runs) - ran == 2 * other
    assert len(list(own_cache.glob("*.jsonl"))) == 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_killed_run_goes_on_to_the_same_bits(model, data, own_cache, runs, dtype):
    whole = run_tasks(model, ["truthfulqa_mc2"], data=data, batch_size=3, dtype=dtype)
    ran = len(runs)
    (file,) = own_cache.glob("*.jsonl")
    lines = file.read_bytes().splitlines(keepends=True)
    for kept in (1, len(lines) // 2, len(lines) - 1):
        file.write_bytes(b"".join(lines[:kept]) + lines[kept][:4])
        before = len(runs)
        again = run_tasks(model, ["truthfulqa_mc2"], data=data, batch_size=3, dtype=dtype)
        assert 0 < len(runs) - before <= ran
        assert again.tasks["truthfulqa_mc2"].items == whole.tasks["truthfulqa_mc2"].items
    assert len(runs) - before < ran
    assert list(own_cache.glob("*.jsonl")) == [file]


def test_a_process_that_is_killed_leaves_what_it_had(model, data, own_cache):
    code = f"""
import os
from pathlib import Path
from deepen.evaluate.cache import Kept
from deepen.evaluate.harness import run_tasks
plain = Kept.add
def add(self, found):
    plain(self, found)
    if len(self.answers) >= 9:
        os.kill(os.getpid(), 9)
Kept.add = add
run_tasks(Path({str(model)!r}), ["arc_challenge"], data=Path({str(data)!r}))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == -9
    (file,) = own_cache.glob("arc_challenge-*.jsonl")
    assert 9 <= len(file.read_bytes().splitlines()) < 28
    assert run_tasks(model, ["arc_challenge"], data=data).tasks["arc_challenge"].n == 7
    assert len(file.read_bytes().splitlines()) == 28


def test_nothing_that_changed_is_taken_for_what_it_was(model, data, tmp_path, own_cache, runs):
    """The bug of lm-eval's own cache, whose key has no model, and its kin."""
    asked = {"names": ["winogrande"], "data": data, "limit": 4}

    def ran(folder=model, **changes):
        before = len(runs)
        harness = run_tasks(folder, **(asked | changes))
        return len(runs) - before, likelihoods(harness, "winogrande")

    first, scores = ran()
    assert first > 0
    assert ran() == (0, scores)
    twin = shutil.copytree(model, tmp_path / "twin")
    assert ran(twin) == (0, scores)  # the same bytes elsewhere
    other = write_model(tmp_path / "other", seed=1)
    assert ran(other)[1] != scores
    place = twin / "model.safetensors"
    status, content = place.stat(), bytearray(place.read_bytes())
    content[-400:] = bytes(400)
    place.write_bytes(content)
    os.utime(place, ns=(status.st_atime_ns, status.st_mtime_ns))  # same size and time, other bytes
    count, found = ran(twin)
    assert count == first
    assert found != scores
    for changes in ({"plan": {"layers": "0:2,1:3"}}, {"dtype": "bfloat16"}, {"limit": 5}, {"batch_size": 2}):
        assert ran(**changes)[0] > 0, changes
    moved = shutil.copytree(data, tmp_path / "data")
    assert ran(data=moved) == (0, scores)
    shutil.copy(moved / "winogrande" / "train.parquet", moved / "winogrande" / "validation.parquet")
    assert ran(data=moved)[0] > 0
    assert ran() == (0, scores)


def test_what_is_written_about_a_model_does_not_change_it(model, tmp_path, own_cache):
    twin = shutil.copytree(model, tmp_path / "twin")
    before = cache.content_hash(twin)
    (twin / "README.md").write_text("its card, with a model-index")
    assert cache.content_hash(twin) == before
    (twin / "config.json").write_text((twin / "config.json").read_text() + " ")
    assert cache.content_hash(twin) != before
    assert own_cache.is_dir()


def test_a_layer_plan_answers_as_the_model_it_describes(model, data, tmp_path):
    from deepen.scale import scale

    deep = scale(model, tmp_path / "deep", layers="0:2,1:3")
    virtual = run_tasks(model, ["arc_challenge"], data=data, plan={"layers": "0:2,1:3"})
    assert likelihoods(virtual, "arc_challenge") == likelihoods(run_tasks(deep, ["arc_challenge"], data=data), "arc_challenge")


def test_a_window_that_is_too_short_is_refused_before_anything_runs(data, tmp_path, runs):
    small = write_model(tmp_path / "small", window=600)
    with pytest.raises(DataError, match=r"a prompt of arc_challenge has [\d,]+ tokens with 25 solved .* window holds 600"):
        run_tasks(small, ["truthfulqa_mc2", "arc_challenge"], data=data)
    assert runs == []
    harness = run_tasks(small, ["arc_challenge"], data=data, reduce_shots=True, limit=2)
    shots = harness.tasks["arc_challenge"].shots
    assert 0 < shots < 25
    assert harness.lm_eval["n-shot"] == {"arc_challenge": shots}
    assert harness.notes[0].startswith(f"arc_challenge: {shots} solved examples instead of 25")
    with pytest.raises(DataError, match=r"truthfulqa_mc2 has [\d,]+ tokens with 0 solved examples"):
        run_tasks(write_model(tmp_path / "least", window=60), ["truthfulqa_mc2"], data=data, reduce_shots=True)


def test_bad_input_is_refused_by_name(model, data, tmp_path):
    with pytest.raises(OptionError, match="0 rows are none"):
        run_tasks(model, ["arc_challenge"], data=data, limit=0)
    with pytest.raises(OptionError, match="a batch of 0"):
        run_tasks(model, ["arc_challenge"], data=data, batch_size=0)
    with pytest.raises(OptionError, match="'exllama' is not an engine"):
        run_tasks(model, ["arc_challenge"], data=data, engine="exllama")
    with pytest.raises(UnsupportedModelError, match="the task wikitext is of a kind"):
        run_tasks(model, ["wikitext"], data=data)
    bare = shutil.copytree(model, tmp_path / "bare")
    for file in bare.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        run_tasks(bare, ["arc_challenge"], data=data)
    (bare / "tokenizer.json").write_bytes((model / "tokenizer.json").read_bytes())
    (bare / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(CheckpointError, match="no end-of-text token"):
        run_tasks(bare, ["arc_challenge"], data=data)


def test_a_missing_split_or_column_is_named(model, data, tmp_path):
    partly = tmp_path / "partly"
    shutil.copytree(data / "gsm8k", partly / "gsm8k")
    (partly / "gsm8k" / "train.parquet").unlink()
    with pytest.raises(DataError, match=r"no split 'train' of the data set openai/gsm8k, which gsm8k needs; there are test"):
        run_tasks(model, ["gsm8k"], data=partly)
    with pytest.raises(DataError, match="no folder for the data set Rowan/hellaswag"):
        run_tasks(model, ["hellaswag"], data=partly)


def test_data_may_be_read_only_and_the_network_cut(model, data, tmp_path, monkeypatch, capsys):
    def refuse(*_, **__):
        raise AssertionError("the network was used")

    copy = shutil.copytree(data, tmp_path / "data")
    folders = [copy, *(place for place in copy.rglob("*") if place.is_dir())]
    before = {place: place.stat().st_mtime_ns for place in [*folders, *copy.rglob("*")]}
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for folder in folders:
        folder.chmod(0o555)
    try:
        run_tasks(model, ["arc_challenge", "hellaswag"], data=copy, limit=2)
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert {place: place.stat().st_mtime_ns for place in [*folders, *copy.rglob("*")]} == before
    printed = capsys.readouterr()
    assert printed.out == ""
    assert all(line.startswith("Evaluating: ") for line in printed.err.splitlines())


@pytest.mark.parametrize("offline", ["1", "0"])
def test_the_hub_without_a_network_is_an_error_of_ours(model, offline, tmp_path):
    code = f"""
import socket
from deepen.errors import DeepenError
from deepen.evaluate.harness import run_tasks
def refuse(*_, **__): raise OSError(101, "Network is unreachable")
socket.socket.connect, socket.getaddrinfo = refuse, refuse
try:
    run_tasks({str(model)!r}, ["gsm8k"])
except DeepenError as error:
    print(error.exit_code, error)
"""
    environment = os.environ | {"HF_HUB_OFFLINE": offline, "HF_HOME": str(tmp_path), "HF_HUB_DOWNLOAD_TIMEOUT": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2 " if offline == "1" else "3 ")
    assert "the data set openai/gsm8k" in done.stdout
    assert "--data" in done.stdout
    assert (NetworkError.exit_code, DataError.exit_code) == (3, 2)


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", context=4096)


def test_a_gguf_in_llama_cpp_answers_as_its_weights_do_in_transformers(gguf, data):
    names = ["truthfulqa_mc2", "winogrande", "hellaswag"]
    theirs = run_tasks(gguf, names, data=data, limit=3)
    ours = run_tasks(gguf, names, data=data, limit=3, engine="transformers", dtype="float32")
    for name in names:
        for one, two in zip(likelihoods(theirs, name), likelihoods(ours, name), strict=True):
            assert one == pytest.approx(two, rel=2e-3)
    assert theirs.lm_eval["config"]["model"] == "llamacpp"


def test_a_server_s_answers_are_its_model_s_and_what_it_lacks_is_named(gguf, data, monkeypatch):
    local = run_tasks(gguf, ["gsm8k"], data=data, limit=2)
    with closing(LlamacppEngine(gguf, context=4096)) as engine:
        monkeypatch.setenv("DEEPEN_API_KEY", engine._key)
        url = engine._address.geturl()
        remote = run_tasks("tiny", ["gsm8k"], data=data, limit=2, engine=url)
        with pytest.raises(UnsupportedModelError, match="does not give the log-probabilities of a prompt"):
            run_tasks("tiny", ["gsm8k", "arc_challenge"], data=data, limit=2, engine=url)
    texts = [[item.facts["text"] for item in harness.tasks["gsm8k"].items] for harness in (local, remote)]
    assert texts[0] == texts[1]
    assert all(texts[0])


def test_a_model_whose_cache_cannot_be_cut_runs_in_batches(data, tmp_path, runs):
    folder = write_model(tmp_path / "sliding", family="mistral", sliding_window=64)
    harness = run_tasks(folder, ["arc_challenge"], data=data, batch_size=2)
    assert {shape[0] for shape in runs} == {2}
    assert harness.tasks["arc_challenge"].n == 7
