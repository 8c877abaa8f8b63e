"""The search: it reports what `evaluate` says, finds the better plan for less work, and loses nothing when killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import families
from deepen.errors import DataError, DeepenError, OptionError, OutputError, ResourceError, UnsupportedModelError
from deepen.evaluate import evaluate
from deepen.explore import explore
from deepen.explore.material import first_tokens, read_parts
from deepen.explore.race import race
from deepen.explore.results import Candidate, Exploration
from deepen.explore.score import collect
from deepen.explore.statistics import Sample, draws, interval, means, ranks
from deepen.model import load
from deepen.scale import scale
from trainable import write_checkpoint, write_text


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("base") / "model", num_hidden_layers=6, initializer_range=0.3)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt", 2500)


SEARCH: dict[str, Any] = {"tokens": 2048, "window": 64, "keep": 3}


def test_scores_are_those_of_the_written_models(model: Path, text: Path, tmp_path: Path) -> None:
    found = explore(model, data=text, out=tmp_path / "out", add=2, exhaustive=True, **SEARCH)
    written = json.loads((tmp_path / "out/plans.json").read_text())
    assert {key: written[key] for key in found.to_dict()} == json.loads(json.dumps(found.to_dict()))
    pictures = {"heatmap.png", "influence.png", "front.png"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"plans.json", "best.yaml", "report.html"} | pictures
    base = evaluate(model, data=text, window=64, tokens=2048).tasks["perplexity"]
    assert found.base["score"] == pytest.approx(base["nats_per_token"], rel=1e-6)
    later = tmp_path / "later.txt"  # the held-out text: the next tokens, which are bytes
    later.write_bytes(text.read_bytes()[2048:4096])
    for number, plan in enumerate(found.plans):
        written = scale(model, tmp_path / str(number), **plan.candidate.options)
        judged = evaluate(written, data=text, window=64, tokens=2048).tasks["perplexity"]
        assert (plan.score.value, plan.tokens) == (pytest.approx(judged["nats_per_token"], rel=1e-6), judged["n"])
        assert plan.difference.value == pytest.approx(judged["nats_per_token"] - base["nats_per_token"], abs=1e-5)
        assert plan.difference.low < plan.difference.value < plan.difference.high
        judged = evaluate(written, data=later, window=64).tasks["perplexity"]
        assert plan.held_out is not None
        assert plan.held_out.value == pytest.approx(judged["nats_per_token"], rel=1e-6)
        assert plan.cost["added"] == 2
    held_out = [plan.held_out.value for plan in found.plans if plan.held_out is not None]
    assert held_out == sorted(held_out)
    assert found.plans[0].rank == 1


def test_solars_plan_of_the_size_is_always_scored_again(model: Path, text: Path, tmp_path: Path) -> None:
    found = explore(model, data=text, out=tmp_path / "out", add=2, **{**SEARCH, "keep": 1})
    assert len(found.plans) <= 2
    (solar,) = [plan for plan in found.plans if plan.candidate.options == {"drop": 2}]
    assert solar.held_out is not None


def test_cost_is_what_plan_says(model: Path, text: Path, tmp_path: Path) -> None:
    from deepen.plan import describe

    found = explore(model, data=text, out=tmp_path / "out", budget="1.4x", **SEARCH)
    base = describe(model, layers="0:6")
    assert sorted({plan.cost["added"] for plan in found.plans}) == [1, 2]
    known = [plan for plan in found.plans if plan.held_out is not None]
    assert len([plan for plan in known if "drop" not in plan.candidate.options]) <= 3 <= len(known)
    for plan in found.plans:
        said = describe(model, **plan.candidate.options)
        for name in ("parameters", "flops_per_token", "kv_bytes_per_token"):
            assert plan.cost[name] == said[name]
        assert plan.cost["flops_ratio"] == pytest.approx(said["flops_per_token"] / base["flops_per_token"])
        assert plan.cost["flops_ratio"] <= 1.4


def test_shared_states_halve_the_work_and_screening_leaves_a_fraction(model: Path, text: Path, tmp_path: Path) -> None:
    options = {**SEARCH, "kinds": ("repeat",), "budget": 5, "tokens": 4096}
    full = explore(model, data=text, out=tmp_path / "full", exhaustive=True, **options)
    assert full.candidates == 21
    assert full.work["actual"] == full.work["exhaustive"] == 64 * 63 * (6 + sum((6 - first) ** 2 for first in range(6)))
    assert full.work["naive"] == 64 * 63 * (6 + sum(6 + j - i for i in range(6) for j in range(i + 1, 7)))
    quick = explore(model, data=text, out=tmp_path / "quick", **options)
    assert quick.work["actual"] <= 0.15 * quick.work["exhaustive"]
    assert quick.work["exhaustive"] == full.work["exhaustive"]


def planted(folder: Path, text: Path) -> Path:
    """A tiny model trained to predict text, also when its layers 2 and 3 run twice, but badly when others do."""
    write_checkpoint(folder, num_hidden_layers=6, hidden_size=48, initializer_range=0.05)
    network = load(folder)[0].train()
    layers = list(network.model.layers)
    tokens = torch.tensor(np.frombuffer(text.read_bytes(), dtype=np.uint8).astype(np.int64) + 1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    random = np.random.default_rng(0)
    blocks = [(first, first + size) for size in (1, 2) for first in range(7 - size) if (first, size) != (2, 2)]

    def loss(plan: list[int], rows: torch.Tensor) -> Any:
        network.model.layers = torch.nn.ModuleList([layers[index] for index in plan])
        network.config.num_hidden_layers = len(plan)
        return network(input_ids=rows, labels=rows, use_cache=False).loss

    for _ in range(150):
        starts = random.integers(0, len(tokens) - 65, 8)
        rows = torch.stack([tokens[start : start + 64] for start in starts])
        first, end = blocks[random.integers(len(blocks))]
        harmed = loss([*range(end), *range(first, 6)], rows)
        wanted = loss([0, 1, 2, 3, 4, 5], rows) + loss([0, 1, 2, 3, 2, 3, 4, 5], rows)
        (wanted + (5 - harmed).clamp(min=0)).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    network.model.layers = torch.nn.ModuleList(layers)
    network.config.num_hidden_layers = 6
    network.save_pretrained(folder)
    return folder


def test_the_one_block_that_is_safe_to_repeat_is_found(text: Path, tmp_path: Path) -> None:
    folder = planted(tmp_path / "model", text)
    for add, kinds in ((2, ("repeat", "drop", "double", "times", "union")), (None, ("repeat",))):
        options = {**SEARCH, "add": add, "kinds": kinds, "budget": None if add else 5, "tokens": 4096}
        found = explore(folder, data=text, out=tmp_path / f"out{add}", **options)
        two = [plan for plan in found.plans if plan.cost["added"] == 2]
        assert two[0].candidate.layers == (0, 1, 2, 3, 2, 3, 4, 5)
        assert two[0].difference.low < 0.02
        if add:
            assert found.work["actual"] <= 0.15 * found.work["exhaustive"]
            assert [plan.rank for plan in found.plans].count(1) == 1
            assert all(plan.difference.low > 0 for plan in found.plans[1:])


_RUN = """
import sys, torch
torch.set_num_threads(1)
from deepen.explore import explore
explore(sys.argv[1], data=sys.argv[2], out=sys.argv[3], add=3, tokens=2048, window=64, keep=3)
"""


def test_killed_and_resumed_it_finds_the_same(model: Path, text: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}

    def start(out: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", _RUN, model, text, out], env=environment, stderr=subprocess.PIPE)

    journal = tmp_path / ".killed.partial/journal.jsonl"
    for entries in (3, 6):
        process = start(tmp_path / "killed")
        while process.poll() is None and (not journal.is_file() or journal.read_bytes().count(b"\n") < entries):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it was done before it could be killed"
        with journal.open("ab") as file:
            file.write(b'["search 0:')  # a row that was being written
    assert not (tmp_path / "killed").exists()
    with pytest.raises(OutputError, match="made otherwise: options was"):
        explore(model, data=text, out=tmp_path / "killed", add=3, tokens=2048, window=64, keep=3, seed=1)
    for out in ("killed", "whole"):
        process = start(tmp_path / out)
        process.communicate()
        assert process.returncode == 0
    assert (tmp_path / "killed/plans.json").read_bytes() == (tmp_path / "whole/plans.json").read_bytes()


@pytest.mark.parametrize("option", [{"stream": True}, {"recompute": True}, {"memory": "12MB"}])
def test_with_less_memory_it_finds_the_same(model: Path, text: Path, tmp_path: Path, option: dict[str, Any]) -> None:
    def plans(found: Exploration) -> list[Any]:
        return [(plan.candidate, plan.rank, pytest.approx(plan.score.value, abs=1e-5)) for plan in found.plans]

    options = {**SEARCH, "add": 2, "data": text, "exhaustive": True}
    usual = explore(model, out=tmp_path / "usual", **options)
    assert plans(explore(model, out=tmp_path / "other", **options, **option)) == plans(usual)


def test_what_does_not_fit_is_refused_with_what_would(model: Path, text: Path, tmp_path: Path) -> None:
    options = {**SEARCH, "add": 2, "data": text, "out": tmp_path / "out"}
    with pytest.raises(ResourceError, match=r"hidden states of the base[\s\S]*--recompute"):
        explore(model, memory="980kB", **options)
    with pytest.raises(ResourceError, match="smaller model"):
        explore(model, memory="100kB", **options)
    assert not list(tmp_path.iterdir())


def test_a_search_that_is_short_of_text_says_how_much_it_needs(model: Path, text: Path, tmp_path: Path) -> None:
    options = {"add": 2, "data": text, "out": tmp_path / "out"}
    with pytest.raises(
        DataError, match=r"248 tokens are too few for 26 plans: a difference would be known to ±0.16[\s\S]*±0.05"
    ):
        explore(model, tokens=256, window=32, **options)
    with pytest.raises(DataError, match="2 windows"):
        explore(model, tokens=256, window=128, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"add": 0}, "0 added layers"),
        ({"add": 2, "budget": "1.01x"}, "no such plan"),
        ({"budget": "much"}, "no bound on the cost"),
        ({"budget": "0.9x"}, "no bound on the cost"),
        ({"add": 2, "keep": 0}, "0 plans are none"),
        ({"add": 2, "kinds": ("thrice",)}, "no kind of plan"),
        ({"add": 2, "objective": "beauty"}, "no objective"),
        ({"add": 2, "window": 200}, "2 to 128 tokens"),
        ({"add": 2, "dtype": "int8"}, "dtype 'int8' is unknown"),
        ({"add": 2, "objective": "choices"}, "text is nothing for the objective choices"),
        ({"add": 2, "objective": "mixture"}, "a mixture needs"),
    ],
)
def test_bad_options(model: Path, text: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises((OptionError, DataError), match=message):
        explore(model, data=text, out=tmp_path / "out", **{**SEARCH, **options})


def test_families_whose_repeats_are_not_exact_are_refused_with_the_reason(text: Path, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", num_hidden_layers=4)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_kv_shared_layers": 2}))
    with pytest.raises(UnsupportedModelError, match="reuse the keys and values of earlier ones"):
        explore(folder, data=text, out=tmp_path / "out", add=2, **SEARCH)


def test_plans_that_a_family_cannot_express_are_left_out(tmp_path: Path) -> None:
    folder = families.make_checkpoint("deepseek_v3", tmp_path / "model", vocab_size=families.TOKENIZER_VOCABULARY)
    families.add_tokenizer(folder)
    text = write_text(tmp_path / "text.txt", 3000)
    found = explore(folder, data=text, out=tmp_path / "out", add=1, kinds=("repeat",), exhaustive=True, **SEARCH)
    assert found.candidates == 6  # a dense prefix of two layers can be said
    found = explore(folder, data=text, out=tmp_path / "two", add=2, kinds=("repeat",), exhaustive=True, **SEARCH)
    assert {plan.candidate.options["repeat"] for plan in found.plans} <= {"1:3", "2:4", "3:5", "4:6"}  # not 0:2
    assert found.candidates == 4


QUESTIONS = [
    {"question": f"Which {word} is it?", "choices": ["the old one", "a small bird", "stone"], "answer": number % 3}
    for number, word in enumerate(["house", "river", "song", "bird", "stone", "word", "thing", "one"] * 3)
]


def write_rows(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_choices_are_scored_by_hand(model: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "questions.jsonl", QUESTIONS)
    found = explore(
        model,
        data=data,
        out=tmp_path / "out",
        add=2,
        objective="choices",
        exhaustive=True,
        tokens=1500,
        held_out=data,
        keep=2,
        window=64,
    )
    network = load(model, found.plans[0].candidate.options)[0]
    expected = []
    for row in QUESTIONS:
        means_of_choices = []
        for choice in row["choices"]:
            prompt, whole = f"Question: {row['question']}\nAnswer:", f"Question: {row['question']}\nAnswer: {choice}"
            tokens = torch.tensor([[byte + 1 for byte in whole.encode()]])
            with torch.no_grad():
                logs = network(input_ids=tokens).logits[0].log_softmax(-1)
            places = range(len(prompt.encode()), len(whole.encode()))
            means_of_choices.append(np.mean([logs[place - 1, tokens[0, place]].item() for place in places]))
        expected.append(-np.log(np.exp(means_of_choices[row["answer"]]) / np.exp(means_of_choices).sum()))
    assert found.plans[0].tokens < len(QUESTIONS)  # 1,500 tokens hold fewer
    assert found.plans[0].score.value == pytest.approx(np.mean(expected[: found.plans[0].tokens]), rel=1e-5)


def test_layouts_of_benchmarks_are_read_alike(model: Path, tmp_path: Path) -> None:
    tokenizer = load(model)[1]

    def read(name: str, rows: list[dict[str, Any]]) -> Any:
        file = write_rows(tmp_path / name, rows)
        return read_parts(file, tokenizer, objective="choices", window=64, longest=128, template="model", ends=[0])[0]

    plain = {"question": "Which?", "choices": ["this", "that one"], "answer": 1}
    letters = {"question": "Which?", "choices": {"text": ["this", "that one"], "label": ["1", "2"]}, "answerKey": "2"}
    first, second = read("plain.jsonl", [plain])[0], read("arc.jsonl", [letters])[0]
    named, lettered = read("named.jsonl", [{**plain, "answer": "that one"}, {**plain, "answer": "B"}])
    ending = {"ctx": "Question: Which?\nAnswer:", "endings": ["this", "that one"], "label": "1"}
    for other in (second, named, lettered, read("swag.jsonl", [ending])[0]):
        assert other.right == first.right == 1
        for one, two in zip(first.rows, other.rows, strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert first.counts.tolist() == [5, 9]  # bytes of " this" and " that one"
    for wrong in ({**plain, "answer": "C"}, {**plain, "choices": ["one"]}, {**plain, "choices": "this or that"}):
        with pytest.raises(DataError, match="row 1"):
            read("wrong.jsonl", [wrong])


def test_of_chats_the_answers_are_scored(tmp_path: Path, text: Path) -> None:
    folder = families.make_checkpoint("llama", tmp_path / "model", vocab_size=families.TOKENIZER_VOCABULARY)
    families.add_tokenizer(folder)
    rows = [{"instruction": f"Say {word}", "output": f"the {word} is old"} for word in ("bird", "stone", "song", "house")] * 8
    data = write_rows(tmp_path / "chats.jsonl", rows)
    found = explore(folder, data=data, out=tmp_path / "out", add=1, exhaustive=True, held_out=data, tokens="2k", window=64)
    network, tokenizer = load(folder, found.plans[0].candidate.options)
    losses = []
    for row in rows:
        asked = f"<s>user: {row['instruction']}</s><s>assistant: "
        whole = tokenizer(asked + row["output"] + "</s>", add_special_tokens=False)["input_ids"]
        before = tokenizer(asked, add_special_tokens=False)["input_ids"]
        start = next(place for place, token in enumerate(before) if token != whole[place])  # the blank belongs to the answer
        with torch.no_grad():
            logs = network(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
        losses += [-logs[place - 1, whole[place]].item() for place in range(start, len(whole))]
    assert found.plans[0].tokens <= len(losses)
    assert found.plans[0].score.value == pytest.approx(np.mean(losses[: found.plans[0].tokens]), rel=1e-4)


def test_a_mixture_is_the_mean_and_a_guard_leaves_plans_out(model: Path, text: Path, tmp_path: Path) -> None:
    questions = write_rows(tmp_path / "questions.jsonl", QUESTIONS)
    options = {**SEARCH, "add": 2, "exhaustive": True, "keep": 99}
    both = explore(
        model, data=[text, questions], held_out=[text, questions], objective="mixture", out=tmp_path / "mixture", **options
    )
    words = explore(model, data=text, out=tmp_path / "words", **options)
    choices = explore(model, data=questions, held_out=questions, objective="choices", out=tmp_path / "choices", **options)

    def scores(found: Exploration) -> dict[str, float]:
        return {plan.candidate.slices: plan.score.value for plan in found.plans}

    for name, value in scores(both).items():
        assert value == pytest.approx((scores(words)[name] + scores(choices)[name]) / 2, rel=1e-6)
    guarded = explore(model, data=text, guard=questions, out=tmp_path / "guarded", **options)
    assert all(plan.guard is not None and plan.guard.low <= 0 for plan in guarded.plans)
    difference = {plan.candidate.slices: plan.difference for plan in choices.plans}
    fallen = {name for name, each in difference.items() if each.low > 0}
    assert fallen  # or this test says nothing
    assert {plan.candidate.slices for plan in guarded.plans} == difference.keys() - fallen
    assert f"{len(fallen)} plans were left out" in guarded.notes[0]


def test_a_race_drops_what_is_worse_and_stays_within_its_budget() -> None:
    random = np.random.default_rng(0)
    truth = np.sort(random.uniform(0, 1, 60))
    noise = random.normal(0, 0.3, (61, 320))
    everyone = [Candidate({}, (0, 1, number)) for number in range(60)]
    seen: list[tuple[int, float]] = []

    def score(some: Any, since: float, until: float) -> list[Sample]:
        columns = slice(round(since * 320), round(until * 320))
        seen.append((len(some), until))
        chosen = [each.layers[2] for each in some]
        sums = np.concatenate([np.zeros((1, 320)), truth[:, None] + noise[1:]])[[0, *(each + 1 for each in chosen)], columns]
        return [Sample(sums, np.ones(sums.shape[1]))]

    def cost(some: Any, since: float, until: float) -> float:
        return float(len(some) * (until - since))

    rungs = (1 / 16, 1 / 4, 1.0)
    standings = race(everyone, score, cost, rungs=rungs, budget=12, keep=3, seed=0)
    assert len(standings) == seen[0][0] == 60
    assert seen[0][0] > seen[1][0] > seen[2][0] >= 3
    assert sum(count * (until - since) for (count, until), since in zip(seen, (0, *rungs), strict=False)) <= 12
    last = [each.candidate.layers[2] for each in standings if each.share == 1]
    assert 0 in last
    full = race(everyone, score, cost, rungs=(1.0,), budget=float("inf"), keep=3, seed=0)
    assert [each.share for each in full] == [1] * 60


def test_intervals_are_paired_and_ties_share_a_place() -> None:
    random = np.random.default_rng(1)
    counts = random.integers(20, 60, 40).astype(float)
    base = counts * random.normal(3, 0.5, 40)  # texts differ much more than plans do
    plans = [base, base + counts * random.normal(0.2, 0.02, 40), base + counts * random.normal(0.2, 0.02, 40), base + counts]
    sample = [Sample(np.array(plans), counts)]
    drawn = draws(sample, 0)
    assert ranks(drawn) == [1, 2, 2, 4]
    assert means(sample) == pytest.approx([each.sum() / counts.sum() for each in plans])
    paired = interval(0.2, drawn[1] - drawn[0])
    residual = plans[1] - plans[0] - counts * (plans[1] - plans[0]).sum() / counts.sum()
    error = 1.96 * np.sqrt((residual**2).sum()) / counts.sum()  # of a ratio of totals (Cochran 1977, section 6.4)
    assert (paired.high - paired.low) / 2 == pytest.approx(error, rel=0.15)
    alone = interval(3.2, drawn[1])
    assert alone.high - alone.low > 5 * (paired.high - paired.low)


def test_questions_are_scored_by_means_per_token() -> None:
    unit = read_unit([3, 6], right=1)
    sample = collect((unit,), np.array([[3.0, 3.0], [1.5, 9.0]]))
    assert sample.counts == 1
    expected = [-np.log(np.exp(-0.5) / (np.exp(-1) + np.exp(-0.5))), -np.log(np.exp(-1.5) / (np.exp(-0.5) + np.exp(-1.5)))]
    assert sample.sums[:, 0] == pytest.approx(expected)
    assert len(first_tokens((unit,) * 5, 3 * 11 + 10)[0]) == 3


def read_unit(lengths: list[int], right: int) -> Any:
    from deepen.explore.material import Unit

    return Unit(tuple((np.zeros(n, dtype=np.int32), np.zeros(n, dtype=np.int32)) for n in lengths), right)


def test_a_file_is_not_overwritten(model: Path, text: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(DeepenError, match="exists already"):
        explore(model, data=text, out=tmp_path / "out", add=2, **SEARCH)
