"""`synthesize` against a real endpoint on this machine that knows the answers: what is asked, what is kept, what is written."""

import json
import threading
from collections import Counter
from pathlib import Path

import pytest

import deepen
from deepen.cli import run_program
from deepen.data.chat import read_conversations
from deepen.data.preference import read_preferences
from deepen.errors import DataError, OptionError, OutputError
from deepen.synthesize import synthesize
from deepen.synthesize.answer import Answer
from deepen.synthesize.kinds import KINDS, Draft, Drawing, Refused
from deepen.synthesize.report import SAMPLES
from deepen.synthesize.seeds import read_seeds
from deepen.synthesize.similar import Similar, are_similar
from marbles import Endpoint, numbers, problem, rephrased, reply, truth
from tinygguf import write_tiny_gguf

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    for name in ("DEEPEN_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def write(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def seeds(tmp_path):
    return write(tmp_path / "seeds.jsonl", map(problem, range(6)))


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def final(row):
    return row["messages"][1]["content"].rpartition(": ")[2]


def test_every_kind_is_made_checked_and_written_in_the_order_of_the_seeds(seeds, tmp_path):
    out, pairs = tmp_path / "out.jsonl", tmp_path / "pairs.jsonl"
    with Endpoint() as endpoint:
        found = deepen.synthesize(out, seeds=seeds, endpoint=endpoint.url, pairs=pairs, price=(1.0, 10.0), parallel=3)
        assert endpoint.most_open <= 3
        assert set(endpoint.answered.values()) == {1}
        assert sum(endpoint.answered.values()) == found.asked == 6 * 6
        assert {body["model"] for body in endpoint.bodies} == {"marbles"}
    rows = read(out)
    assert [(row["seed_row"], row["kind"]) for row in rows] == [(crate + 1, kind) for crate in range(6) for kind in KINDS]
    for row in rows:
        question = row["messages"][0]["content"]
        assert final(row) == row["final"] == str(truth(question))
        red, blue = numbers(row["seed_row"] - 1)
        masked = {"rephrase": False, "answer": False, "self-verification": True, "backward": True}[row["kind"]]
        assert ("unknown x" in question) == masked
        assert (str(red) in question.split()) + (str(blue) in question.split()) == (1 if masked else 2)
        assert (str(red + blue) in question) == masked
    conversations = read_conversations(out)
    assert [conversation.messages[0].content for conversation in conversations] == [
        row["messages"][0]["content"] for row in rows
    ]
    [preferences] = read_preferences(pairs)
    for crate, preference in enumerate(preferences):
        texts = [[turn.content for turn in side.messages] for side in (preference.chosen, preference.rejected)]
        assert texts == [[rephrased(crate), reply(rephrased(crate))], [rephrased(crate), problem(crate)["answer"]]]
    report = json.loads((tmp_path / "out.report.json").read_text())
    assert report == found.report
    assert {
        kind: (counts["drafts"], counts["kept"], counts["acceptance_rate"]) for kind, counts in report["kinds"].items()
    } == dict.fromkeys(KINDS, (6, 6, 1.0))
    assert (report["requests"], report["prompt_tokens"], report["completion_tokens"], report["pairs"]) == (36, 360, 180, 6)
    assert report["cost"] == pytest.approx((360 + 10 * 180) / 1e6)
    assert len(report["samples"]) == SAMPLES
    assert "| rephrase | 6 | 6 | 100.0% |" in (tmp_path / "out.report.md").read_text()


def test_nothing_is_paid_for_twice(seeds, tmp_path):
    out = tmp_path / "out.jsonl"
    with Endpoint() as endpoint:
        synthesize(out, seeds=seeds, endpoint=endpoint.url, kinds="rephrase")
        asked = sum(endpoint.sent.values())
        first = out.read_bytes()
        again = synthesize(out, seeds=seeds, endpoint=endpoint.url, kinds="rephrase", overwrite=True)
        assert (again.asked, sum(endpoint.sent.values()), out.read_bytes()) == (0, asked, first)
        assert again.report["requests"] == asked == 12
        more = synthesize(out, seeds=seeds, endpoint=endpoint.url, kinds="rephrase,answer", samples=2, overwrite=True)
        assert more.asked == 12 + 12  # another sample of the first kind, and two of the second
        other = tmp_path / "other.jsonl"
        cache = tmp_path / "out.answers.jsonl"
        shared = synthesize(other, seeds=seeds, endpoint=endpoint.url, kinds=["answer"], cache=cache)
        assert shared.asked == 0
        assert (
            synthesize(other, seeds=seeds, endpoint=endpoint.url, kinds="answer", cache=cache, seed=1, overwrite=True).asked
            == 6
        )


def test_samples_mask_different_numbers(seeds, tmp_path):
    out = tmp_path / "out.jsonl"
    with Endpoint() as endpoint:
        found = synthesize(out, seeds=seeds, endpoint=endpoint.url, kinds="backward", samples=3)
    assert found.report["kinds"]["backward"]["refused"] == {"no number to mask, or no other one": 6}
    assert Counter(int(row["final"]) for row in read(out)) == Counter(each for crate in range(6) for each in numbers(crate))


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("The answer is: {wrong}", "wrong value"),
        ("It is {right}, or is it? The answer is: {wrong}", "wrong value"),
        ("The answer is: {right}\nWait. The answer is: {wrong}", "wrong value"),
        (r"{right} is close, but \boxed{{{wrong}}}", "wrong value"),
        ("The answer is: {right} or {wrong}", "wrong value"),
        ("The answer is: not {right}", "wrong value"),
        ("The answer is: {right}.5", "wrong value"),
        ("The answer is: -{right}", "wrong value"),
        ("The answer is: {right}%", "wrong value"),
        ("Between {right} and {wrong}", "no final value"),
        ("I cannot say", "no final value"),
        ({"message": {"content": "The answer is: {right}"}, "finish_reason": "length"}, "cut off"),
        ({"message": {"content": None}, "finish_reason": "content_filter"}, "an empty answer"),
        ("<think>The answer is: {right}</think>  ", "an empty answer"),
        ("<think>The answer is: {right}</think>The answer is: {wrong}", "wrong value"),
    ],
)
def test_wrong_answers_are_never_kept(seeds, tmp_path, wrong, reason):
    def say(prompt):
        if not prompt.startswith("Solve") or "Crate1" in prompt:
            return reply(prompt)
        right = truth(prompt)
        text = wrong if isinstance(wrong, str) else wrong["message"]["content"]
        said = text and text.format(right=right, wrong=right + 1)
        return said if isinstance(wrong, str) else {**wrong, "message": {"content": said}}

    if wrong == "The answer is: {right}%":  # of more than 1 it may be the number asked for, without its unit
        wrong, reason = "The answer is: 0.{right}%", "wrong value"
    out = tmp_path / "out.jsonl"
    with Endpoint(say) as endpoint:
        found = synthesize(out, seeds=seeds, endpoint=endpoint.url)
    rows = read(out)
    assert [row["kind"] for row in rows] == list(KINDS)
    assert all(
        "Crate1" in row["messages"][0]["content"] and final(row) == str(truth(row["messages"][0]["content"])) for row in rows
    )
    assert all(counts["refused"] == {reason: 5} for counts in found.report["kinds"].values())
    assert [sample["kept"] for sample in found.report["samples"]].count(True) == 4
    assert reason in (tmp_path / "out.report.md").read_text()


def test_nothing_kept_is_a_clear_answer(seeds, tmp_path, capsys):
    with Endpoint(lambda prompt: "perhaps") as endpoint:
        words = ["synthesize", str(tmp_path / "out.jsonl"), "--seeds", str(seeds), "--endpoint", endpoint.url]
        assert run_program([*words, "--json"]) == 1
    told = capsys.readouterr()
    assert json.loads(told.out)["acceptance_rate"] == 0.0
    assert "nothing was kept" in told.err
    assert (tmp_path / "out.jsonl").read_bytes() == b""


def test_repeated_questions_go(tmp_path):
    rows = [problem(1), problem(2), {**problem(1), "question": problem(1)["question"].upper().replace("?", "!")}, problem(3)]

    def say(prompt):
        if prompt.startswith("Write"):
            return problem(2)["question"].lower() if "Crate2" in prompt else 'Problem: "' + rephrased(1) + '"'
        return "Well.\nThe answer is: 57" if "Crate1" in prompt else reply(prompt)

    red, blue = numbers(1)
    assert red + blue == 56
    out = tmp_path / "out.jsonl"
    with Endpoint(lambda prompt: say(prompt).replace("57", "56")) as endpoint:
        found = synthesize(out, seeds=write(tmp_path / "seeds.jsonl", rows), endpoint=endpoint.url, kinds="rephrase", samples=2)
        solved = sum(count for prompt, count in endpoint.sent.items() if prompt.startswith("Solve"))
    assert found.report["seeds_left_out"] == {"unanswered": 0, "repeated": 1, "benchmarks": 0}
    assert found.report["kinds"]["rephrase"]["refused"] == {"repeats its seed": 2, "repeats another": 1, "wrong value": 2}
    assert solved == 2  # what repeats its seed is not paid for, and the same request once
    assert [row["messages"][0]["content"] for row in read(out)] == [rephrased(1)]


def test_rows_of_benchmarks_are_left_out(seeds, tmp_path):
    benchmark = tmp_path / "bench.jsonl"
    write(benchmark, [{"question": problem(2)["question"], "answer": "1"}, {"question": rephrased(4), "answer": "1"}])
    out = tmp_path / "out.jsonl"
    with Endpoint() as endpoint:
        found = synthesize(out, seeds=seeds, endpoint=endpoint.url, exclude_benchmarks=[benchmark])
        assert not any("Crate2 " in prompt for prompt in endpoint.sent)  # nothing is paid for a seed that is left out
    assert found.report["seeds_left_out"]["benchmarks"] == 1
    assert found.report["kinds"]["rephrase"]["refused"] == {"repeats a benchmark": 1}
    assert {row["seed_row"] for row in read(out)} == {1, 2, 4, 5, 6}
    assert rephrased(4) not in out.read_text()


def test_seeds_in_every_layout(tmp_path):
    cases = [
        ({"question": "q", "answer": "1+1=<<1+1=2>>2\n#### 2"}, "2"),
        ({"question": "q", "answer": "2"}, "2"),
        ({"question": "q", "answer": "about two", "final": "2"}, "2"),
        ({"query": "q", "response": "So. #### 2\nThe answer is: 2", "original_question": "o"}, "2"),
        ({"problem": "q", "solution": r"So \boxed{\frac{1}{2}}", "level": "1"}, r"\frac{1}{2}"),
        ({"problem": "q", "solution": "By hand.", "answer": r"\sqrt{2}", "unique_id": "test/1"}, r"\sqrt{2}"),
        ({"question": "q", "answer": 7}, "7"),
        ({"instruction": "q", "output": "It takes 5 days."}, "5"),
    ]
    for number, (row, value) in enumerate(cases):
        [seed], _ = read_seeds(write(tmp_path / f"{number}.jsonl", [row]))
        assert (seed.question, seed.final, seed.id) == ("q", value, row.get("unique_id", "1"))
    (tmp_path / "list.json").write_text(json.dumps([problem(1), problem(2)]))
    assert [seed.number for seed in read_seeds(tmp_path / "list.json")[0]] == [1, 2]


@pytest.mark.parametrize(
    "missing", [{"question": "Why?"}, {"question": "Why?", "answer": "Because."}, {"question": "?", "answer": ""}]
)
def test_seeds_without_answers_are_refused_by_row(tmp_path, capsys, missing):
    rows = [problem(1), missing, problem(2), missing]
    seeds, out = write(tmp_path / "seeds.jsonl", rows), tmp_path / "out.jsonl"
    with Endpoint() as endpoint:
        words = ["synthesize", str(out), "--seeds", str(seeds), "--endpoint", endpoint.url, "--kinds", "answer"]
        assert run_program(words) == 2
        assert "rows 2, 4" in capsys.readouterr().err
        assert not endpoint.sent
        assert run_program([*words, "--skip-unanswered"]) == 0
    assert [row["seed_row"] for row in read(out)] == [1, 3]
    assert json.loads((tmp_path / "out.report.json").read_text())["seeds_left_out"]["unanswered"] == 2
    with pytest.raises(DataError, match="rows 1, 2"):
        read_seeds(write(tmp_path / "none.jsonl", [missing, missing]))


def test_the_key_is_sent_and_not_written(seeds, tmp_path, monkeypatch):
    key = tmp_path / "key"
    key.write_text("secret-word\n")
    with Endpoint() as endpoint:
        synthesize(
            tmp_path / "a.jsonl", seeds=seeds, endpoint=f"{endpoint.url}/v1/", kinds="answer", api_key_file=key, model="other"
        )
        assert set(endpoint.keys) == {"Bearer secret-word"}
        assert {body["model"] for body in endpoint.bodies} == {"other"}
        monkeypatch.setenv("OPENAI_API_KEY", "of-the-environment")
        synthesize(tmp_path / "b.jsonl", seeds=seeds, endpoint=endpoint.url, kinds="answer")
        assert endpoint.keys[-1] == "Bearer of-the-environment"
    assert not any(b"secret-word" in file.read_bytes() for file in tmp_path.iterdir() if file != key)


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"kinds": "rephrase,guess"}, "--kinds"), ({"kinds": ""}, "--kinds"), ({"samples": 0}, "--samples"),
        ({"parallel": 0}, "--parallel"), ({"temperature": -1.0}, "--temperature"), ({"timeout": 0.0}, "--timeout"),
        ({"similarity": 0.0}, "--similarity"), ({"price": (1.0,)}, "--price"), ({"endpoint": "marbles"}, "--endpoint"),
        ({"endpoint": "ftp://x"}, "--endpoint"), ({"endpoint": "http://x:nine"}, "--endpoint"), ({"limit": 0}, "--limit"),
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(seeds, tmp_path, options, where):
    with pytest.raises(OptionError) as refused:
        synthesize(tmp_path / "out.jsonl", **({"seeds": seeds, "endpoint": "http://127.0.0.1:9"} | options))
    assert refused.value.where == where
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seeds.jsonl"]


def test_outputs_are_not_overwritten_unasked(seeds, tmp_path):
    for name in ("out.jsonl", "out.report.json", "pairs.jsonl"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(OutputError, match="exists already"):
            synthesize(tmp_path / "out.jsonl", seeds=seeds, endpoint="http://127.0.0.1:9", pairs=tmp_path / "pairs.jsonl")
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()
    for pairs in (seeds, tmp_path / "out.jsonl", tmp_path / "out.answers.jsonl"):
        with pytest.raises(OptionError, match="two things at once"):
            synthesize(tmp_path / "out.jsonl", seeds=seeds, endpoint="http://127.0.0.1:9", pairs=pairs, overwrite=True)
    (tmp_path / "out.answers.jsonl").write_text("a diary\nof mine\n")
    with pytest.raises(OutputError, match="not a value as it is kept here"):
        synthesize(tmp_path / "out.jsonl", seeds=seeds, endpoint="http://127.0.0.1:9")
    assert (tmp_path / "out.answers.jsonl").read_text() == "a diary\nof mine\n"


def test_a_problem_is_masked_and_stated_as_told(tmp_path):
    question = r"Ann has $1,200 and 3.5% interest on 1/2 of it, x say. How many of the 7 days does she wait?"
    [seed], _ = read_seeds(write(tmp_path / "s.jsonl", [{"question": question, "answer": "#### 4"}]))
    masked = set()
    for sample in range(3):
        steps = KINDS["backward"](seed, Drawing(sample, 0, 0.8))
        prompt = next(steps)
        with pytest.raises(StopIteration) as end:
            steps.send(Answer("The answer is: 0", "stop"))
        draft = end.value.value
        assert isinstance(draft, Draft)
        assert draft.question in prompt
        assert "the unknown y" in draft.question  # x is taken
        masked.add(draft.written)
    assert masked == {"1,200", "3.5", "7"}
    steps = KINDS["self-verification"](seed, Drawing(0, 0, 0.8))
    next(steps)
    with pytest.raises(Refused, match="statement"):
        steps.send(Answer("She waits for 5 days.", "stop"))
    steps = KINDS["rephrase"](seed, Drawing(0, 0, 0.8))
    next(steps)
    with pytest.raises(Refused, match="gives its answer away"):
        steps.send(Answer("Of 7 days, Ann waits 4 with $1,200 at 3.5%. How many?", "stop"))


def test_near_duplicates_are_found_exactly():
    words = [f"w{chr(97 + number % 26)}{chr(97 + number // 26)}" for number in range(120)]
    texts = [" ".join([*words[:100], *words[100 : 100 + extra]]) for extra in range(20)]
    for threshold in (0.3, 0.8, 0.95, 1.0):
        kept = Similar(threshold)
        kept.add(texts[0])
        for extra, text in enumerate(texts):
            expected = 98 / (98 + extra) >= threshold
            assert kept.has(text) == are_similar(texts[0], text, threshold) == expected
    assert not are_similar(problem(1)["question"], problem(2)["question"], 0.5)  # other numbers, another problem
    assert are_similar("Two words", "two, words!", 1.0)


@pytest.mark.skipif(not (SHARED / "eval" / "gsm8k").is_dir(), reason="needs the shared data")
def test_published_seeds_are_read_whole():
    seeds, unanswered = read_seeds(SHARED / "eval" / "gsm8k" / "train.parquet")
    assert (len(seeds), unanswered) == (7473, 0)
    assert all(seed.value.form is not None for seed in seeds)
    seeds, unanswered = read_seeds(SHARED / "math" / "metamath" / "GSM8K_Backward.jsonl")
    assert (len(seeds), unanswered) == (1270, 0)


def test_a_served_model_is_asked_from_end_to_end(seeds, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    from deepen.engine.llamacpp import start_server

    server = start_server(write_tiny_gguf(tmp_path / "tiny.gguf"), context=512, name="tiny", public=True)
    try:
        monkeypatch.setenv("DEEPEN_API_KEY", server.key or "none")
        url = server.address.geturl()
        words = ["synthesize", str(tmp_path / "out.jsonl"), "--seeds", str(seeds), "--endpoint", url, "--limit", "2"]
        code = run_program([*words, "--max-new-tokens", "8", "--parallel", "2", "--json"])
    finally:
        server.close()
    report = json.loads(capsys.readouterr().out)
    assert (code, report["kept"], report["model"]) == (1, 0, "tiny")
    assert report["drafts"] == 8
    assert report["asked"] == report["requests"] >= 4
    assert report["completion_tokens"] > 0
    assert all(counts["refused"] for counts in report["kinds"].values())


def test_help_needs_no_torch(capsys):
    assert run_program(["synthesize", "--help"]) == 0
    assert "--seeds" in capsys.readouterr().out


def test_two_runs_for_one_output_do_not_collide(seeds, tmp_path):
    out = tmp_path / "out.jsonl"
    with Endpoint(seconds=0.3) as endpoint:
        first = threading.Thread(target=synthesize, args=(out,), kwargs={"seeds": seeds, "endpoint": endpoint.url})
        first.start()
        while not endpoint.sent:
            pass
        with pytest.raises(OutputError, match="another run"):
            synthesize(out, seeds=seeds, endpoint=endpoint.url)
        with pytest.raises(OutputError, match="another run uses this file"):
            synthesize(tmp_path / "b.jsonl", seeds=seeds, endpoint=endpoint.url, cache=tmp_path / "out.answers.jsonl")
        first.join()
    assert len(read(out)) == 24
