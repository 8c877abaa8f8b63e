"""Alignment end to end on a tiny real checkpoint: losses by hand, references, the order of sDPO, and exact resuming."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from deepen.checkpoint.manifest import read_manifest
from deepen.errors import DataError, OptionError, UnsupportedModelError, UserError
from deepen.train.align import align
from deepen.train.dpo import Objective, preference_losses, reward_sums
from trainable import write_checkpoint

TIMED = {"tokens_per_second", "seconds"}
WORDS = ("red", "green", "blue", "white")
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("aligned") / "model")


def write(file: Path, rows: list[dict[str, str]]) -> Path:
    file.write_text(json.dumps(rows))
    return file


def repeats(count: int, first: int = 0) -> list[dict[str, str]]:
    """Something that a tiny model can learn: to say the word is better than to say another."""
    return [
        {"prompt": f"{number % 7} {WORDS[number % 4]} ", "chosen": WORDS[number % 4], "rejected": WORDS[(number + 1) % 4] + "!"}
        for number in range(first, first + count)
    ]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write(tmp_path / "pairs.json", repeats(42))


def fit(model: Path, out: Path, *data: Path, **changed: Any) -> Path:
    options: dict[str, Any] = {"template": "solar", "learning_rate": 3e-3, "every": 4, "sequence_length": 64}
    return align(model, out, data=data, **options | changed)


def metrics(out: Path, *, timed: bool = True) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return rows if timed else [{key: value for key, value in row.items() if key not in TIMED} for row in rows]


def weights(out: Path) -> bytes:
    return (out / "model.safetensors").read_bytes()


def likelihoods(folder: Path, rows: list[dict[str, str]]) -> np.ndarray:
    """Log-probability of each chosen and rejected answer, each alone in float64; bytes are tokens, and 0 is the end."""
    network = AutoModelForCausalLM.from_pretrained(folder)
    found = []
    for row in rows:
        for answer in (row["chosen"], row["rejected"]):
            tokens = [byte + 1 for byte in (row["prompt"] + answer).encode()] + [0]
            with torch.no_grad():
                likely = network(input_ids=torch.tensor([tokens])).logits[0].double().log_softmax(-1)
            found.append(sum(likely[at - 1, tokens[at]].item() for at in range(len(row["prompt"]), len(tokens))))
    return np.array(found).reshape(-1, 2)


# Losses ---------------------------------------------------------------------------------------------------------------------


def test_losses_and_rewards_are_those_worked_out_by_hand() -> None:
    """One pair: log π = -1 and -4, log π_ref = -2 and -3, answers of 2 and 4 tokens, β = 1/2.

    The log-ratios are +1 and -1, so h = 2 and βh = 1.
    sigmoid: log(1 + e⁻¹) = 0.3132617. Smoothed with 0.1: 0.9 · 0.3132617 + 0.1 · (0.3132617 + 1) = 0.4132617.
    ipo: h' = 1/2 + 1/4 = 0.75, and 1 / 2β = 1, so (0.75 - 1)² = 0.0625.
    The chosen answer's loss per token is 1/2; three times that is 1.5.
    Rewards: +1/2 and -1/2, a margin of 1, and right.
    The gradient of sigmoid by log π(chosen) is -β sigmoid(-βh) = -0.5 · 0.2689414 = -0.1344707.
    """
    policy = torch.tensor([[-1.0, -4.0]], requires_grad=True)
    reference, learned = torch.tensor([[-2.0, -3.0]]), torch.tensor([[2.0, 4.0]])
    expected = {
        Objective("sigmoid", 0.5): 0.3132617,
        Objective("sigmoid", 0.5, label_smoothing=0.1): 0.4132617,
        Objective("ipo", 0.5): 0.0625,
        Objective("sigmoid", 0.5, sft_weight=3.0): 0.3132617 + 1.5,
        Objective("ipo", 0.5, sft_weight=3.0): 0.0625 + 1.5,
    }
    for objective, value in expected.items():
        assert preference_losses(policy, reference, learned, objective).tolist() == pytest.approx([value], rel=1e-6)
    (gradient,) = torch.autograd.grad(preference_losses(policy, reference, learned, Objective("sigmoid", 0.5)).sum(), policy)
    assert gradient.flatten().tolist() == pytest.approx([-0.1344707, 0.1344707], rel=1e-6)
    assert {name: value.item() for name, value in reward_sums(policy, reference, 0.5).items()} == {
        "reward_accuracy": 1,
        "reward_margin": 1.0,
        "chosen_reward": 0.5,
        "rejected_reward": -0.5,
        "chosen_log_probability": -1.0,
        "rejected_log_probability": -4.0,
    }


@pytest.mark.parametrize("margin", [1e4, -1e4])
def test_losses_and_gradients_of_extreme_pairs_are_finite(margin: float) -> None:
    policy = torch.tensor([[margin, 0.0]], requires_grad=True)
    for objective in (Objective("sigmoid", 1.0), Objective("sigmoid", 1.0, label_smoothing=0.3), Objective("ipo", 1.0)):
        loss = preference_losses(policy, torch.zeros(1, 2), torch.ones(1, 2), objective).sum()
        (gradient,) = torch.autograd.grad(loss, policy)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()


# Runs -----------------------------------------------------------------------------------------------------------------------


def test_a_run_learns_and_writes_an_ordinary_checkpoint(model: Path, pairs: Path, tmp_path: Path) -> None:
    out = fit(model, tmp_path / "out", pairs, epochs=4)
    rows = metrics(out)
    losses = [row["loss"] for row in rows if "loss" in row]
    measured = [row for row in rows if "validation_loss" in row]
    assert len(losses) == 19, "38 of 42 pairs four times, 8 per step"
    assert [row["step"] for row in measured] == [0, 4, 8, 12, 16, 19]
    assert losses[0] == measured[0]["validation_loss"] == pytest.approx(math.log(2), rel=1e-6)
    assert measured[-1]["validation_loss"] < 0.7 * math.log(2)
    assert measured[-1]["validation_reward_accuracy"] == 1
    assert measured[0]["validation_reward_margin"] == pytest.approx(0, abs=1e-5)

    assert {path.name for path in out.iterdir()} == {
        *(path.name for path in model.iterdir()),
        *("README.md", "chat_template.jinja", "deepen.json", "metrics.jsonl", "training.png"),
    }
    AutoModelForCausalLM.from_pretrained(out)
    manifest = read_manifest(out)
    assert (manifest["verb"], manifest["options"]["beta"], manifest["plan"]) == ("align", 0.1, None)
    results = manifest["results"]
    assert (results["pairs"], results["held_out_pairs"], results["steps"]) == (38, 4, 19)
    assert results["validation_reward_accuracy"] == 1
    assert (results["chunks"][0]["data"], results["chunks"][0]["pairs"]) == (str(pairs), 38)
    card = (out / "README.md").read_text()
    assert "Reward accuracy on held-out pairs: 1.00 after " in card
    assert "| pairs.json | 38 |" in card
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.parametrize("objective", [{}, {"loss": "ipo"}, {"label_smoothing": 0.2}, {"sft_weight": 0.5}])
def test_the_reference_is_the_model_before_its_first_step(
    model: Path, pairs: Path, tmp_path: Path, objective: dict[str, Any]
) -> None:
    """What was logged last, computed again from the two checkpoints on disk, an answer at a time in float64."""
    held_out = repeats(9, first=42)
    file = write(tmp_path / "held_out.json", held_out)
    out = fit(model, tmp_path / "out", pairs, validation=file, beta=0.3, **objective)
    policy, reference = likelihoods(out, held_out), likelihoods(model, held_out)
    ratios = policy - reference
    last = metrics(out)[-1]
    assert abs(ratios).min() > 0.01, "something was learned"
    assert last["validation_reward_margin"] == pytest.approx(0.3 * (ratios[:, 0] - ratios[:, 1]).mean(), rel=1e-4)
    assert last["validation_reward_accuracy"] == (ratios[:, 0] > ratios[:, 1]).mean()
    assert last["validation_chosen_log_probability"] == pytest.approx(policy[:, 0].mean(), rel=1e-5)
    answers = np.array([[len(row["chosen"]) + 1, len(row["rejected"]) + 1] for row in held_out])
    margin = 0.3 * (ratios[:, 0] - ratios[:, 1])
    smoothing = objective.get("label_smoothing", 0)
    losses = (1 - smoothing) * np.log1p(np.exp(-margin)) + smoothing * np.log1p(np.exp(margin))
    if objective.get("loss") == "ipo":
        losses = ((ratios / answers) @ [1, -1] - 1 / 0.6) ** 2
    losses = losses - objective.get("sft_weight", 0) * policy[:, 0] / answers[:, 0]
    assert last["validation_loss"] == pytest.approx(losses.mean(), rel=1e-4)
    (chunk,) = read_manifest(out)["results"]["chunks"]
    assert chunk["before"]["margin"] == pytest.approx((reference[:, 0] - reference[:, 1]).mean(), rel=1e-4)
    assert chunk["after"]["accuracy"] == (policy[:, 0] > policy[:, 1]).mean()
    learned = likelihoods(model, repeats(42))
    assert chunk["start_reward_accuracy"] == (learned[:, 0] > learned[:, 1]).mean()


def test_pairs_at_once_are_pairs_one_by_one(model: Path, pairs: Path, tmp_path: Path) -> None:
    one, many = (fit(model, tmp_path / f"{size}", pairs, micro_batch=size) for size in (1, 3))
    for left, right in zip(metrics(one), metrics(many), strict=True):
        for key in ("loss", "gradient_norm", "reward_margin", "validation_loss"):
            assert left.get(key, 0) == pytest.approx(right.get(key, 0), rel=2e-4, abs=1e-5), (left["step"], key)


def test_dropout_is_off(tmp_path: Path, pairs: Path) -> None:
    """The policy of the first step is the reference, to the last bit."""
    dropping = write_checkpoint(tmp_path / "dropping", attention_dropout=0.5)
    row = next(row for row in metrics(fit(dropping, tmp_path / "out", pairs, epochs=0.2)) if "loss" in row)
    assert (row["reward_margin"], row["loss"]) == (0, pytest.approx(math.log(2), rel=1e-6))


def test_adapters_learn_and_are_merged(model: Path, pairs: Path, tmp_path: Path) -> None:
    out = fit(model, tmp_path / "out", pairs, train="lora", lora_rank=4, learning_rate=1e-2, epochs=4)
    assert metrics(out)[-1]["validation_reward_accuracy"] == 1
    assert weights(out) != weights(model)
    assert [name for name in os.listdir(out) if "adapter" in name] == []


def test_the_control_is_aligned_with_a_reference_of_its_own(model: Path, pairs: Path, tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", num_hidden_layers=1)
    out = fit(model, tmp_path / "out", pairs, control=True, base=base, epochs=2)
    alone = fit(base, tmp_path / "alone", pairs, epochs=2)
    rows = metrics(out, timed=False)
    beside = [{key: value for key, value in row.items() if key != "run"} for row in rows if row.get("run") == "control"]
    assert beside == metrics(alone, timed=False)
    assert weights(out) == weights(fit(model, tmp_path / "without", pairs, epochs=2))
    results = read_manifest(out)["results"]
    assert results["control_validation_reward_accuracy"] == beside[-1]["validation_reward_accuracy"]


# Step by step ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sets(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A hard and an easy set: pairs turned the way that the model finds them, in 3 and in 9 of 12 cases."""
    folder, rows = tmp_path_factory.mktemp("sets"), repeats(24)
    finds = likelihoods(model, rows) @ [1, -1] > 0
    turned = []
    for number, (row, right) in enumerate(zip(rows, finds, strict=True)):
        wanted = number % 12 < 3 if number < 12 else number % 12 < 9
        flipped = row | {"chosen": row["rejected"], "rejected": row["chosen"]}
        turned.append(row if right == wanted else flipped)
    held_out = write(folder / "held_out.json", repeats(8, first=24))
    names = {"hard": write(folder / "hard.json", turned[:12]), "easy": write(folder / "easy.json", turned[12:])}
    return names | {"held_out": held_out}


def stepwise(model: Path, out: Path, sets: dict[str, Path], **changed: Any) -> Path:
    options: dict[str, Any] = {"batch_rows": 4, "epochs": 2, "every": 2, "save_every": 4}
    return fit(model, out, sets["hard"], sets["easy"], stepwise=True, validation=sets["held_out"], **options | changed)


@pytest.fixture(scope="module")
def undisturbed(model: Path, sets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stepwise(model, tmp_path_factory.mktemp("undisturbed") / "out", sets)


def test_steps_go_from_easy_to_hard_each_from_the_model_before(
    model: Path, sets: dict[str, Path], undisturbed: Path, tmp_path: Path
) -> None:
    """sDPO is DPO on the easier set, and then DPO of that model on the harder one: the same bits as two ordinary runs."""
    out = undisturbed
    options: dict[str, Any] = {"batch_rows": 4, "epochs": 2, "every": 2, "validation": sets["held_out"]}
    first = fit(model, tmp_path / "first", sets["easy"], **options)
    second = fit(first, tmp_path / "second", sets["hard"], **options)
    assert weights(out) == weights(second)

    easy, hard = read_manifest(out)["results"]["chunks"]
    assert [(chunk["data"], chunk["start_reward_accuracy"]) for chunk in (easy, hard)] == [
        (str(sets["easy"]), 9 / 12),
        (str(sets["hard"]), 3 / 12),
    ]
    told = [read_manifest(each)["results"]["chunks"][0] for each in (first, second)]
    for chunk, alone in zip((easy, hard), told, strict=True):
        assert {key: chunk[key] for key in ("before", "after", "reward_accuracy", "reward_margin", "pairs")} == {
            key: alone[key] for key in ("before", "after", "reward_accuracy", "reward_margin", "pairs")
        }
    assert easy["after"] == hard["before"] != easy["before"]

    rows = [metrics(each, timed=False) for each in (out, first, second)]
    count, read = rows[1][-1]["step"], rows[1][-1]["tokens"]
    moved = [row | {"step": row["step"] + count, "tokens": row["tokens"] + read} for row in rows[2] if row["step"] > 0]
    assert rows[0] == rows[1] + moved, "one log, and the schedule begins again"


def test_the_chunks_of_an_ordinary_run_are_one(model: Path, sets: dict[str, Path], tmp_path: Path) -> None:
    out = fit(model, tmp_path / "out", sets["hard"], sets["easy"], epochs=0.5)
    (chunk,) = read_manifest(out)["results"]["chunks"]
    assert chunk["data"] == f"{sets['hard']} + {sets['easy']}"
    assert chunk["pairs"] == 22


# Resuming -------------------------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
import torch
from deepen.train import align, references, stage
torch.set_num_threads(1)
model, out, easy, hard, held_out, when = sys.argv[1:]
def kill():
    os.kill(os.getpid(), signal.SIGKILL)
rate, write = stage.learning_rate, references.write_file
steps = 0
def learning_rate(*given, **schedule):
    global steps
    steps += 1
    if when == f"in step {steps // 2}":  # asked for twice per step
        kill()
    return rate(*given, **schedule)
def write_file(file, content):
    if when == f"before {file.name}":
        kill()
    write(file, content)
    if when == f"after {file.name}":
        kill()
stage.learning_rate, references.write_file = learning_rate, write_file
align.align(model, out, data=[hard, easy], stepwise=True, validation=held_out, template="solar", learning_rate=3e-3,
            sequence_length=64, batch_rows=4, epochs=2, every=2, save_every=4)
"""


@pytest.mark.parametrize(
    "when",
    [
        "after run-held-out-0.npz",
        "in step 5",
        "in step 6",
        "before run-pairs-1.npz",
        "after run-held-out-1.npz",
        "in step 9",
        "in step 11",
        "before run-held-out-2.npz",
    ],
)
def test_killed_at_any_moment_it_ends_with_the_same_bits(
    model: Path, sets: dict[str, Path], undisturbed: Path, tmp_path: Path, when: str
) -> None:
    out = tmp_path / "out"
    arguments = [str(each) for each in (model, out, sets["easy"], sets["hard"], sets["held_out"])]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments, when], env=ONE_THREAD, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists()
    stepwise(model, out, sets)
    assert weights(out) == weights(undisturbed)
    assert metrics(out, timed=False) == metrics(undisturbed, timed=False)
    assert read_manifest(out)["results"]["chunks"] == read_manifest(undisturbed)["results"]["chunks"]


def test_references_of_other_settings_are_not_taken(
    model: Path, sets: dict[str, Path], undisturbed: Path, tmp_path: Path
) -> None:
    """Killed before anything was saved, a run may begin with another model: its reference is that model."""
    out = tmp_path / "out"
    other = write_checkpoint(tmp_path / "other", num_hidden_layers=1)
    arguments = [str(each) for each in (other, out, sets["easy"], sets["hard"], sets["held_out"])]
    subprocess.run([sys.executable, "-c", KILLED, *arguments, "in step 1"], env=ONE_THREAD, check=False)
    assert list(tmp_path.glob(".out.partial/.training/scratch/run-pairs-0-0.npz"))
    stepwise(model, out, sets)
    assert weights(out) == weights(undisturbed)


def test_another_seed_gives_other_bits(model: Path, pairs: Path, tmp_path: Path) -> None:
    one, other = (fit(model, tmp_path / f"{seed}", pairs, seed=seed) for seed in (0, 1))
    assert weights(one) != weights(other)


# Many processes -------------------------------------------------------------------------------------------------------------


def test_two_processes_align_as_one_does(model: Path, sets: dict[str, Path], tmp_path: Path) -> None:
    # a small rate: AdamW turns rounding in gradients near zero into whole steps
    alone = stepwise(model, tmp_path / "alone", sets, batch_rows=5, every=3, learning_rate=3e-4)
    words = ["align", model, tmp_path / "out", "--data", sets["hard"], sets["easy"], "--stepwise", "--template", "solar"]
    words += ["--validation", sets["held_out"], "--learning-rate", "3e-4", "--sequence-length", "64", "--batch-rows", "5"]
    words += ["--epochs", "2", "--every", "3", "--save-every", "4", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "deepen", *map(str, words)],
        env=ONE_THREAD, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("hard.json: prompt, chosen and rejected") == 1, "said by one of them"
    for one, two in zip(metrics(alone), metrics(tmp_path / "out"), strict=True):
        assert one.keys() == two.keys()
        for key in one.keys() - TIMED - {"energy_joules"}:
            assert two[key] == pytest.approx(one[key], rel=1e-4, abs=2e-5), (one["step"], key)


# Refusals -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"beta": 0}, "--beta: 0 is not above zero"),
        ({"loss": "hinge"}, "--loss: no loss is called 'hinge'"),
        ({"label_smoothing": 0.5}, "--label-smoothing: 0.5 is not from 0 to below 0.5"),
        ({"label_smoothing": 0.1, "loss": "ipo"}, "--label-smoothing: ipo knows no label smoothing"),
        ({"sft_weight": -1}, "--sft-weight: -1 is below zero"),
        ({"teacher": "model"}, "--teacher: alignment learns from pairs"),
        ({"epochs": 0}, "--epochs: 0 is not above zero"),
        ({"epochs": float("inf")}, "--epochs: a run without end"),
        ({"batch_tokens": 64}, "--batch-tokens: 64 is not a multiple of twice the sequence length, 128"),
        ({"too_long": "split"}, "--too-long: 'split' is no choice"),
        ({"sequence_length": 256}, "--sequence-length: the model takes 2 to 128 tokens at once, not 256"),
        ({"template": "model"}, "--template: the model has no chat template"),
        ({"warmup": 6}, "--warmup: 6 is neither a fraction"),
        ({"cap": ["x=3"]}, "caps none of the data files"),
        ({"seeds": 3}, "no option is called 'seeds'"),
    ],
)
def test_options_out_of_range_are_refused(
    model: Path, pairs: Path, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        fit(model, tmp_path / "out", pairs, **changed)
    assert not any(tmp_path.glob("*out*")), "nothing is begun"


def test_data_that_does_not_fit_is_refused(model: Path, pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"pairs\.json, row 1, chosen: 42 of 42 pairs are longer than 8 tokens, up to "):
        fit(model, tmp_path / "out", pairs, sequence_length=8)
    with pytest.raises(DataError, match="there is one pair, and none is left"):
        fit(model, tmp_path / "out", write(tmp_path / "one.json", repeats(1)))
    with pytest.raises(DataError, match=r"other\.json: its only pair is held out"):
        fit(model, tmp_path / "out", tmp_path / "one.json", write(tmp_path / "other.json", repeats(1)))
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(UnsupportedModelError, match="a GGUF file cannot be trained"):
        fit(gguf, tmp_path / "out", pairs)
    with pytest.raises(UserError, match="is not finite"):
        fit(model, tmp_path / "out", pairs, learning_rate=1e30, schedule="constant")
    assert not (tmp_path / "out").exists()


def test_the_verb_on_the_command_line(model: Path, sets: dict[str, Path], tmp_path: Path) -> None:
    words = ["align", model, tmp_path / "out", "--data", sets["hard"], sets["easy"], "--stepwise", "--template", "solar"]
    words += ["--sequence-length", "64", "--epochs", "0.5"]
    run = [sys.executable, "-m", "deepen", *map(str, words)]
    done = subprocess.run([*run, "--json"], capture_output=True, text=True, check=False, env=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["out"] == str(tmp_path / "out")
    assert [Path(chunk["data"]).name for chunk in told["chunks"]] == ["easy.json", "hard.json"]
    assert "hard.json: prompt, chosen and rejected (prompt, chosen, rejected); 12 rows" in done.stderr
    done = subprocess.run([*run, "--overwrite"], capture_output=True, text=True, check=False, env=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[-4:]] == ["data", "easy.json", "hard.json", str(tmp_path / "out")]
    assert lines[0].startswith("parameters learned")
    bad = write(tmp_path / "bad.json", [{"prompt": "a", "chosen": "b"}])
    words = ["align", model, tmp_path / "b", "--data", bad, "--sequence-length", "64", "--template", "solar"]
    done = subprocess.run([sys.executable, "-m", "deepen", *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"error: {bad}, row 1: the columns prompt, chosen are those of no known layout" in done.stderr
