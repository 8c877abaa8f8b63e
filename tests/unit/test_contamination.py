"""Rows of benchmarks in training data: found where they are planted, in whatever layout, and nowhere else."""

import json
import random
import re
import string
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, LlamaForCausalLM

from deepen.checkpoint.manifest import read_manifest
from deepen.data.benchmarks import NAMES, read_benchmarks, row_of
from deepen.data.contamination import find_matches, index_benchmarks, open_index
from deepen.data.ngrams import LONGEST, SHORTEST, build_index, find, words_of
from deepen.errors import DataError, OptionError
from deepen.evaluate.contamination import contamination, min_k
from trainable import write_checkpoint

EVAL = Path(__file__).parents[3] / "shared" / "data" / "eval"
WORDS = [f"w{number}" for number in range(400)]


def sentences(count: int, seed: int, words: int = 30) -> list[str]:
    drawn = random.Random(seed)
    return [" ".join(drawn.choices(WORDS, k=words)).capitalize() + "." for _ in range(count)]


def write_benchmark(folder: Path, name: str = "gsm8k", rows: int = 40) -> list[str]:
    """A folder in the Hub's layout whose test rows are questions with answers; there is a train split too."""
    place = folder / name
    place.mkdir(parents=True)
    for split, seed in (("train", 1), ("test", 2)):
        lines = [json.dumps({"question": each, "answer": f"#### {at}"}) for at, each in enumerate(sentences(rows, seed))]
        (place / f"{split}.jsonl").write_text("\n".join(lines))
    (place / "README.md").write_text(
        "---\nconfigs:\n- config_name: main\n  data_files:\n  - split: train\n    path: train.jsonl\n"
        "  - split: test\n    path: test.jsonl\n---\nQuestions.\n"
    )
    return sentences(rows, 2)


def shouted(text: str) -> str:
    return text.upper()


def without_marks(text: str) -> str:
    return text.translate(str.maketrans("", "", string.punctuation))


def marks_as_spaces(text: str) -> str:
    return re.sub(r"[^\w\s]", " ", text)


def spread_out(text: str) -> str:
    return "  ".join(text.split()).replace(" ", "\t", 3)


def dressed(text: str) -> str:
    return f"**Question:** “{text.replace(chr(39), chr(8217))}” …"


def chat(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"Please solve this.\n{text}"}, {"role": "assistant", "content": "Yes."}]}


def sharegpt(text: str) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": text}]}


def pair(text: str) -> dict[str, Any]:
    return {"prompt": text, "chosen": "yes", "rejected": "no"}


LAYOUTS: dict[str, Callable[[str], Any]] = {
    "text": lambda text: {"text": text},
    "chat": chat,
    "ShareGPT": sharegpt,
    "pair": pair,
    "Alpaca": lambda text: {"instruction": "Answer.", "input": text, "output": "4"},
}


def gsm8k() -> tuple[list[str], list[str]]:
    """The questions of GSM8K's train and test split."""
    if not EVAL.is_dir():
        pytest.skip("needs ../shared/data/eval")
    parquet = pytest.importorskip("pyarrow.parquet")
    train, test = (parquet.read_table(EVAL / "gsm8k" / f"{split}.parquet")["question"] for split in ("train", "test"))
    return train.to_pylist(), test.to_pylist()


@pytest.mark.parametrize(
    ("layout", "change"),
    [
        *[(None, change) for change in (str, shouted, without_marks, marks_as_spaces, spread_out, dressed)],
        *[(layout, dressed) for layout in LAYOUTS],
    ],
)
def test_three_planted_rows_of_gsm8k_are_found_among_5000_lines_and_nothing_else(
    layout: str | None, change: Callable[[str], str], tmp_path: Path
) -> None:
    """The other lines are GSM8K's own training questions, four of which share a sentence with a test row."""
    train, test = gsm8k()
    lines, planted = train[:5000], {7: 3, 2500: 700, 4999: 1318}
    for line, row in planted.items():
        lines[line] = change(test[row])
    if layout is None:
        file = tmp_path / "lines.txt"
        file.write_text("\n".join(line.replace("\n", " ") for line in lines))
    else:
        file = tmp_path / "rows.jsonl"
        file.write_text("\n".join(json.dumps(LAYOUTS[layout](line)) for line in lines))
    found = find_matches(open_index("gsm8k", EVAL), file)
    assert [(match.row, match.benchmark, match.benchmark_row) for match in found] == [
        (line + 1, "gsm8k", row + 1) for line, row in planted.items()
    ]


def common_runs(first: list[str], second: list[str], length: int) -> set[int]:
    """By the definition: where n-grams of the first begin that the second has."""
    grams = {tuple(second[at : at + length]) for at in range(len(second) - length + 1)}
    return {at for at in range(len(first) - length + 1) if tuple(first[at : at + length]) in grams}


TEXTS = st.lists(st.sampled_from(["a1", "b2", "c3"]), max_size=60).map(" ".join)


@given(st.lists(TEXTS, max_size=6), st.lists(TEXTS, max_size=6))
def test_n_grams_are_those_of_the_definition(indexed: list[str], texts: list[str]) -> None:
    """Few words, so that n-grams occur again and again; each text by itself, and texts of any length."""
    index = build_index(indexed)
    expected = {}
    for number, text in enumerate(texts):
        for other, words in enumerate(map(str.split, indexed)):
            places = common_runs(words, text.split(), min(LONGEST, len(words))) if len(words) >= SHORTEST else set()
            if places:
                expected[number, other] = places
    assert find(index, enumerate(texts)) == expected


@pytest.mark.parametrize("running", [False, True])
def test_texts_longer_than_a_batch_are_searched_to_their_ends(running: bool) -> None:
    """500,000 words in one text; what is planted lies across every place where it could be cut."""
    drawn = random.Random(3)
    needles = [" ".join(drawn.choices(WORDS, k=40)) for _ in range(200)]
    filler = [" ".join(f"x{drawn.randrange(10**6)}" for _ in range(2500)) for _ in needles]
    text = " ".join(part for both in zip(filler, needles, strict=True) for part in both)
    found = find(build_index(needles), [(0, text)], running=running)
    assert found == {(0, number): set(range(40 - LONGEST + 1)) for number in range(len(needles))}


def test_n_grams_go_on_from_line_to_line_of_a_text_but_not_from_row_to_row(tmp_path: Path) -> None:
    (row,) = sentences(1, 5)
    index = index_benchmarks({"b": [row_of(1, {"text": row})]})
    words = row.split()
    wrapped = "\n".join(" ".join(words[at : at + 7]) for at in range(0, len(words), 7))
    (tmp_path / "a.md").write_text(f"Before.\n\n{wrapped}\nAfter.\n\n{row}\n{row}\n")
    assert [(match.row, match.share) for match in find_matches(index, tmp_path / "a.md")] == [(3, 1), (10, 1), (11, 1)]
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in wrapped.splitlines()))
    assert find_matches(index, tmp_path / "b.jsonl") == []


@pytest.mark.parametrize(("kept", "found"), [(24, True), (23, False)])
def test_a_row_is_repeated_if_four_fifths_of_its_words_are(kept: int, found: bool, tmp_path: Path) -> None:
    (row,) = sentences(1, 6, words=30)
    index = index_benchmarks({"b": [row_of(1, {"text": row})]})
    (tmp_path / "a.txt").write_text(" ".join([*row.split()[:kept], *(["other"] * 6)]))
    assert bool(find_matches(index, tmp_path / "a.txt")) is found
    assert find_matches(index, tmp_path / "a.txt", share=0)[0].share == pytest.approx(kept / 30)
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": row}))
    (result,) = contamination(tmp_path / "a.txt", tmp_path / "b.jsonl").values()
    assert (result.value, result.facts["partial_found"]) == (int(found), int(not found))


@pytest.mark.parametrize(("words", "compared"), [(7, 0), (8, 1), (12, 1)])
def test_short_rows_are_compared_whole_from_eight_words_on(words: int, compared: int, tmp_path: Path) -> None:
    (row,) = sentences(1, 8, words=words)
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": row}))
    (tmp_path / "a.txt").write_text(f"So: {row} Yes.\n{' '.join(row.split()[:-1])} other words")
    (result,) = contamination(tmp_path / "a.txt", tmp_path / "b.jsonl").values()
    assert (result.n, result.rows, result.facts["matches_found"]) == (compared, 1, compared)
    assert (result.facts["too_short"], result.value) == (1 - compared, compared)


def test_words_are_lower_case_without_marks() -> None:
    assert words_of("Don\u2019t  PAY $1,000 — it's well-known\u00a0(ﬁne): A) one B. two") == [
        *("dont", "pay", "1", "000", "its", "well", "known", "fine", "one", "two"),
    ]


@pytest.mark.parametrize(
    ("row", "planted"),
    [
        ({"question": "Which is it?", "choices": sentences(4, 1), "answer": 2}, "Which is it?\nA. {}\nB. {}\nC. {}\nD. {}"),
        ({"question": "Which is it?", "choices": {"text": sentences(4, 1), "label": list("ABCD")}, "answerKey": "C"},
         "Question: Which is it? (A) {} (B) {} (C) {} (D) {}"),
    ],
)  # fmt: skip
def test_a_short_question_is_found_with_its_choices(row: dict[str, Any], planted: str, tmp_path: Path) -> None:
    made = row_of(1, row)
    assert made.solved == f"Which is it? {sentences(4, 1)[2]}"
    (tmp_path / "a.txt").write_text(planted.format(*sentences(4, 1)).replace("\n", " "))
    assert len(find_matches(index_benchmarks({"b": [made]}), tmp_path / "a.txt")) == 1


@pytest.mark.parametrize("name", [name for name in NAMES if name not in {"h4", "h6", "bias", "all"}])
def test_every_benchmark_is_read_and_its_rows_find_themselves(name: str, tmp_path: Path) -> None:
    if not EVAL.is_dir():
        pytest.skip("needs ../shared/data/eval")
    pytest.importorskip("pyarrow")
    (rows,) = read_benchmarks(name, EVAL).values()
    assert len(rows) >= 240
    some = [row for row in rows[:: max(1, len(rows) // 20)] if len(words_of(row.solved)) >= 8]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": row.solved}) for row in some))
    found = find_matches(index_benchmarks({name: some}), tmp_path / "a.jsonl")
    matched = {(match.row, match.benchmark_row) for match in found}
    long = [(at, row) for at, row in enumerate(some, start=1) if len(words_of(row.texts[0])) >= 8]
    assert {(at, row.number) for at, row in long} <= matched


def test_a_folder_is_read_by_its_header_and_a_folder_of_folders_too(tmp_path: Path) -> None:
    questions = write_benchmark(tmp_path / "eval")
    write_benchmark(tmp_path / "eval", "mine")
    for word in (tmp_path / "eval" / "gsm8k", f"{tmp_path}/eval/gsm8k:main:test", tmp_path / "eval" / "gsm8k" / "test.jsonl"):
        (rows,) = read_benchmarks(word).values()
        assert [row.texts[0] for row in rows] == questions
        assert rows[3].solved == f"{questions[3]} #### 3"
    assert list(read_benchmarks(tmp_path / "eval")) == ["gsm8k", "mine"]
    assert list(read_benchmarks("gsm8k", tmp_path / "eval")) == ["gsm8k"]
    (train,) = read_benchmarks(f"{tmp_path}/eval/gsm8k:main:train").values()
    assert [row.texts[0] for row in train] == sentences(40, 1)


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="gsm8k"):
        read_benchmarks("gsm8")
    write_benchmark(tmp_path / "eval")
    with pytest.raises(DataError, match="no folder for the data set allenai/ai2_arc"):
        read_benchmarks("h6", tmp_path / "eval")
    with pytest.raises(DataError, match="split 'dev'"):
        read_benchmarks(f"{tmp_path}/eval/gsm8k:main:dev")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="nor a folder"):
        read_benchmarks(tmp_path / "empty")
    (tmp_path / "broken.jsonl").write_text("[1]")
    with pytest.raises(DataError, match="row 1: not an object"):
        read_benchmarks(tmp_path / "broken.jsonl")


def test_a_name_without_the_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="folder"):
        read_benchmarks("gsm8k")


def test_the_report_counts_benchmark_rows_and_lists_training_rows(tmp_path: Path) -> None:
    questions = write_benchmark(tmp_path / "eval")
    rows = [*sentences(50, 9), questions[4], questions[4], questions[7]]
    (tmp_path / "chats.json").write_text(json.dumps([chat(row) for row in rows]))
    (result,) = contamination([tmp_path / "chats.json"], "gsm8k", data=tmp_path / "eval").values()
    assert (result.value, result.n, result.rows) == (2 / 40, 40, 40)
    assert [(match["row"], match["benchmark_row"]) for match in result.facts["matches"]] == [(51, 5), (52, 5), (53, 8)]
    assert result.facts["matches"][0]["words"] == " ".join(words_of(questions[4]))
    assert result.facts["training_rows"] == 3
    assert [item.key for item in result.items if item.score] == ["5", "8"]
    json.dumps(result.to_dict())


def deepen(*words: str | Path) -> int:
    from deepen.cli import run_program

    return run_program([str(word) for word in words])


def test_excluded_rows_are_not_learned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the command: what follows `--exclude-benchmarks` is never taken for data."""
    questions = write_benchmark(tmp_path / "eval")
    write_benchmark(tmp_path / "eval", "mine")
    rows = [*sentences(20, 9, words=6), questions[4], questions[7]]
    data = tmp_path / "rows.json"
    data.write_text(json.dumps([{"instruction": row, "output": "Yes."} for row in rows]))
    model = write_checkpoint(tmp_path / "model", max_position_embeddings=512)
    common = ("--template", "solar", "--epochs", "0.1", "--json")
    both = tmp_path / "eval" / "gsm8k", tmp_path / "eval" / "mine"
    assert deepen("instruct", model, tmp_path / "out", "--data", data, "--exclude-benchmarks", *both, *common) == 0
    results = read_manifest(tmp_path / "out")["results"]
    assert results["conversations"] + results["held_out_conversations"] == 20
    assert results["excluded_benchmark_rows"] == {"gsm8k": 2, "mine": 2}
    assert "2 of 22 conversations repeat rows of benchmarks" in capsys.readouterr().err
    data.write_text(json.dumps([{"instruction": questions[0], "output": "Yes."}] * 3))
    assert deepen("instruct", model, tmp_path / "none", "--data", data, "--exclude-benchmarks", both[0], *common) == 2
    assert "all conversations repeat" in capsys.readouterr().err


def test_pairs_are_excluded_too(tmp_path: Path) -> None:
    from deepen.train.align import align

    questions = write_benchmark(tmp_path / "eval")
    rows = [{"prompt": row, "chosen": "Yes.", "rejected": "No."} for row in [*sentences(12, 9, words=6), questions[4]]]
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    out = align(
        write_checkpoint(tmp_path / "model", max_position_embeddings=512), tmp_path / "out", data=tmp_path / "pairs.json",
        template="solar", sequence_length=256, epochs=0.1, exclude_benchmarks=[tmp_path / "eval" / "gsm8k"],
    )  # fmt: skip
    results = read_manifest(out)["results"]
    assert (results["pairs"] + results["held_out_pairs"], results["excluded_benchmark_rows"]) == (12, {"gsm8k": 1})


def test_min_k_is_high_for_a_model_that_learned_the_rows_and_low_for_its_base(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    rows = [" ".join(each.split()[:12]) for each in sentences(4, 11)]
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps({"text": row}) for row in rows))
    base = write_checkpoint(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = LlamaForCausalLM.from_pretrained(base)
    ids = [torch.tensor([tokenizer(row)["input_ids"]]) for row in rows]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        for each in ids:
            model(input_ids=each, labels=each).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(tmp_path / "learned")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "learned" / name).write_bytes((base / name).read_bytes())
    (learned,) = min_k(tmp_path / "learned", base, tmp_path / "b.jsonl", k=20).values()
    (itself,) = min_k(base, base, tmp_path / "b.jsonl", k=20).values()
    assert (learned.name, learned.value, learned.n) == ("b_min_k", 1.0, 4)
    assert learned.low is not None
    assert learned.low < 1.0
    assert learned.facts["all_tokens"]["value"] == 1.0
    assert learned.facts["score_difference"]["value"] > 0
    assert itself.facts["score_difference"] == {"value": 0, "low": 0, "high": 0}

    with torch.no_grad():
        logs = model(input_ids=ids[0]).logits[0, :-1].double().log_softmax(-1).gather(1, ids[0][0, 1:, None])[:, 0]
    lowest = logs.sort().values[: int(len(logs) * 0.2)]
    assert learned.items[0].facts["score"] == pytest.approx(lowest.mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"), [({"k": 0}, "0 is not above"), ({"neighbours": 3}, "no tenth"), ({"limit": 0}, "0 rows")]
)
def test_min_k_refuses_what_makes_no_sense(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=message):
        min_k("model", "reference", tmp_path, **options)


def test_indexing_and_searching_need_no_torch() -> None:
    import subprocess

    heavy = "{'torch', 'transformers', 'datasets', 'pyarrow'}"
    code = f"import sys; import deepen.data.contamination; print(sorted({heavy} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
