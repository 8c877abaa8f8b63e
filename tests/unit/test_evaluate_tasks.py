"""What the suites are, where their data lies and what is run: all without a model."""

import json
import random
import subprocess
import sys

import pytest
import yaml

from benchmark_data import rows_of, write_set
from deepen.data.layout import locate, split_files
from deepen.errors import DataError, OptionError
from deepen.evaluate.folders import read_folder
from deepen.evaluate.sequences import Pair, arrange, common, remaining
from deepen.evaluate.tasks import SUBJECTS, SUITES, check_limit, definition, evenly_spaced, expand, find, version

LEADERBOARD = {
    "arc_challenge": (25, "acc_norm"),
    "hellaswag": (10, "acc_norm"),
    "mmlu": (5, "acc"),
    "truthfulqa_mc2": (0, "acc"),
    "winogrande": (5, "acc"),
    "gsm8k": (5, "exact_match,strict-match"),
}


def test_the_suites_are_the_leaderboard_s():
    assert SUITES["h6"] == tuple(LEADERBOARD)
    assert SUITES["h4"] == tuple(LEADERBOARD)[:4]
    assert {name: (find(name).shots, find(name).metric) for name in SUITES["h6"]} == LEADERBOARD
    assert expand(["h4", "gsm8k", "mmlu"]) == [*SUITES["h4"], "gsm8k"]


def test_mmlu_is_57_tasks_of_57_subjects():
    files = find("mmlu").files
    assert len(files) == SUBJECTS == 57
    assert len({definition(file)["dataset_name"] for file in files.values()}) == 57
    assert {definition(file)["task"] for file in files.values()} == set(files)


@pytest.mark.parametrize("name", ["boolq", "mmlu_anatomy", "truthfulqa_mc1", "crows_pairs_english_age", "bbq_ambig"])
def test_any_single_task_of_lm_eval_is_found_by_its_name(name):
    (file,) = find(name).files.values()
    assert definition(file)["task"] == name


@pytest.mark.parametrize(("name", "near"), [("arc_chalenge", "arc_challenge"), ("hellaswagg", "hellaswag"), ("h5", "h6")])
def test_an_unknown_task_is_refused_with_the_nearest_names(name, near):
    with pytest.raises(OptionError, match=f"no task is called '{name}'.*{near}"):
        find(name)


@pytest.mark.parametrize("name", ["truthfulqa", "blimp"])
def test_a_group_or_a_tag_is_no_task(name):
    with pytest.raises(OptionError, match="no task is called"):
        find(name)


def test_looking_for_a_task_needs_neither_torch_nor_lm_eval():
    code = "import sys; from deepen.evaluate.tasks import find; find('mmlu'); print({'torch', 'lm_eval'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_old_gsm8k_has_its_old_stops_and_another_version():
    old, new = find("gsm8k_v1"), find("gsm8k")
    assert old.settings["generation_kwargs"]["until"] == [":", "Question:", "Question"]
    assert version(old) != version(new) == version(find("gsm8k"))
    assert version(new).startswith("3.0-")


def test_a_version_follows_the_file_what_it_includes_and_the_code_it_names(tmp_path):
    (tmp_path / "base").write_text("dataset_path: a/b\nprocess_docs: !function utils.docs\n")
    (tmp_path / "utils.py").write_text("def docs(rows): return rows\n")
    file = tmp_path / "one.yaml"
    file.write_text("include: base\ntask: one\n")
    task = type(find("gsm8k"))("one", {"one": file})
    seen = [version(task)]
    for name, text in [("base", "dataset_path: a/c\nprocess_docs: !function utils.docs\n"), ("utils.py", "docs = None\n")]:
        (tmp_path / name).write_text(text)
        seen.append(version(task))
    assert len(set(seen)) == 3


@pytest.mark.parametrize("folder", ["truthful_qa", "TruthfulQA", "truthfulqa_truthful_qa", "truthfulqa/truthful_qa"])
def test_data_is_found_under_the_usual_names(tmp_path, folder):
    (tmp_path / folder).mkdir(parents=True)
    assert locate(tmp_path, "truthfulqa/truthful_qa").name.lower() in {"truthful_qa", "truthfulqa", "truthfulqa_truthful_qa"}


def test_the_data_set_itself_may_be_named(tmp_path):
    (tmp_path / "gsm8k").mkdir()
    assert locate(tmp_path / "gsm8k", "openai/gsm8k") == tmp_path / "gsm8k"


def test_a_missing_folder_is_named_with_the_data_set(tmp_path):
    with pytest.raises(DataError, match=r"no folder for the data set openai/gsm8k; looked for gsm8k, openai_gsm8k") as caught:
        locate(tmp_path, "openai/gsm8k")
    assert caught.value.where == str(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        locate(tmp_path / "none", "openai/gsm8k")


def gsm(tmp_path, **splits):
    return write_set(tmp_path / "gsm8k", {"main": splits})


def test_a_folder_is_read_with_or_without_a_header(tmp_path):
    rows = rows_of("gsm8k", 4, random.Random(1))
    folder = gsm(tmp_path, train=rows[:1], test=rows[1:])
    listed = read_folder(folder, "main", ("question",))
    (folder / "README.md").unlink()
    named = read_folder(folder, "main", ("question",))
    assert {split: part.to_list() for split, part in listed.items()} == {split: part.to_list() for split, part in named.items()}
    assert listed["test"].to_list() == rows[1:]
    inner = tmp_path / "hub" / "main"
    inner.mkdir(parents=True)
    (folder / "train.parquet").rename(inner / "train-00000-of-00001.parquet")
    (folder / "test.parquet").rename(inner / "test-00000-of-00001.parquet")
    assert read_folder(tmp_path / "hub", "main")["test"].to_list() == rows[1:]


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_lines_and_arrays_of_json_are_read(tmp_path, kind):
    rows = rows_of("gsm8k", 3, random.Random(2))
    text = "".join(json.dumps(row) + "\n" for row in rows) if kind == "jsonl" else json.dumps(rows)
    (tmp_path / f"test.{kind}").write_text(text)
    assert read_folder(tmp_path, "main")["test"].to_list() == rows


def test_what_is_wrong_with_a_folder_is_said_and_where(tmp_path):
    rows = rows_of("gsm8k", 3, random.Random(4))
    folder = gsm(tmp_path, test=[{"question": row["question"]} for row in rows])
    with pytest.raises(DataError, match=r"no column 'answer'; there are question") as caught:
        read_folder(folder, "main", ("question", "answer"))
    assert caught.value.where == str(folder / "test.parquet")
    write_set(tmp_path / "mmlu", {"anatomy": {"test": rows}, "virology": {"test": rows}})
    with pytest.raises(DataError, match="no configuration 'astronomy'"):
        read_folder(tmp_path / "mmlu", "astronomy")
    (folder / "test.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(DataError, match="cannot be read"):
        read_folder(folder, "main")


def test_no_file_outside_the_folder_is_read(tmp_path):
    outside = tmp_path / "outside.jsonl"
    outside.write_text('{"a": 1}\n')
    inside = tmp_path / "set"
    inside.mkdir()
    header = {"configs": [{"config_name": "main", "data_files": [{"split": "test", "path": "../outside.jsonl"}]}]}
    (inside / "README.md").write_text(f"---\n{yaml.safe_dump(header)}---\n")
    with pytest.raises(DataError):
        split_files(inside, "main")


@pytest.mark.parametrize(
    ("rows", "limit", "wanted"), [(10, 3, [0, 3, 6]), (4, 4, [0, 1, 2, 3]), (3, 9, [0, 1, 2]), (2, None, [0, 1])]
)
def test_rows_are_spread_evenly(rows, limit, wanted):
    assert evenly_spaced(rows, limit) == wanted


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_of_nothing_is_refused(limit):
    with pytest.raises(OptionError, match="rows are none"):
        check_limit(limit)


def whole_blocks(before, width, shared):
    return shared if before == width else min(shared, min(before, width) // 4 * 4)


def some_pairs(seed, count=40):
    """Prompts with shared beginnings, and continuations of one token or several."""
    rng = random.Random(seed)
    stems = [tuple(rng.choices(range(5), k=rng.randint(1, 30))) for _ in range(4)]
    pairs = []
    for _ in range(count):
        context = rng.choice(stems) + tuple(rng.choices(range(5), k=rng.randint(0, 6)))
        for _ in range(rng.randint(1, 4)):
            pairs.append(Pair(context, tuple(rng.choices(range(5), k=rng.randint(1, 3)))))
    return pairs


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("padded", [True, False])
def test_every_pair_is_asked_once_of_what_precedes_it(seed, padded):
    pairs = some_pairs(seed)
    runs = arrange(pairs, 3, 100, padded=padded, shared=True, keep=whole_blocks)
    asked = {number: run for run in runs for number in run.asked}
    assert sorted(asked) == list(range(len(pairs)))
    for number, run in asked.items():
        context, continuation = pairs[number]
        assert run.tokens == context + continuation[:-1]
        assert run.first <= len(context) - 1
        assert run.asked[number] == continuation
    assert len({run.tokens for run in runs}) == len(runs)
    assert sum(run.cost for run in runs) < sum(run.width for run in runs)


@pytest.mark.parametrize("seed", range(8))
def test_runs_that_are_needed_find_what_they_found_before(seed):
    pairs = some_pairs(seed)
    runs = arrange(pairs, 3, 100, padded=True, shared=True, keep=whole_blocks)
    index = {id(run): place for place, run in enumerate(runs)}

    def origins(chosen):
        cache, found = [], {}
        for run in chosen:
            assert len(cache) >= run.kept
            cache = cache[: run.kept] + [index[id(run)]] * (run.width - run.kept)
            found[index[id(run)]] = list(cache)
        return found

    reference = origins(runs)
    rng = random.Random(seed)
    known = {number for number in range(len(pairs)) if rng.random() < 0.7}
    part = remaining(runs, known)
    again = origins(part)
    wanted = {place for place, run in enumerate(runs) if not known.issuperset(run.asked)}
    assert wanted <= again.keys()
    assert len(part) < len(runs)
    assert all(again[place] == reference[place] for place in wanted)
    assert remaining(runs, range(len(pairs))) == []
    assert remaining(runs, ()) == runs


def test_in_batches_all_of_a_batch_run_again():
    pairs = some_pairs(1)
    runs = arrange(pairs, 4, 100, padded=True, shared=False)
    part = remaining(runs, set(range(len(pairs))) - set(runs[5].asked))
    assert part == runs[4:8]
    assert {run.kept for run in runs} == {0}


def test_a_sequence_that_is_too_long_loses_its_beginning():
    (run,) = arrange([Pair(tuple(range(10)), (10, 11))], 1, 8, padded=True, shared=True)
    assert run.tokens == tuple(range(3, 11))
    assert run.tokens[run.first] == 9
    assert common((1, 2, 3), (1, 2, 4)) == 2
