"""Instruction tuning end to end on a tiny real checkpoint: what is learned, what is written, and exact resuming."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from deepen.checkpoint.manifest import read_manifest
from deepen.data.template import SOLAR, Row
from deepen.data.text import IGNORED
from deepen.errors import DataError, OptionError, UnsupportedModelError, UserError
from deepen.train.instruct import instruct
from deepen.train.sequences import mean_token_loss, micro_batches, pack_sequences, sequence, token_loss
from trainable import write_checkpoint

TIMED = {"tokens_per_second", "seconds"}
COLOURS = ("red", "green", "blue", "white")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model")


def write_chats(file: Path, rows: int, first: int = 0) -> Path:
    """Something that a tiny model can learn: repeat the word."""
    content = [{"instruction": f"Say {word}.", "input": "", "output": word} for word in colours(rows, first)]
    file.write_text(json.dumps(content))
    return file


def colours(rows: int, first: int = 0) -> Iterator[str]:
    for number in range(first, first + rows):
        yield f"{COLOURS[number % 4]} {COLOURS[number // 4 % 4]}"


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    return write_chats(tmp_path / "chats.json", 42)


def fit(model: Path, out: Path, data: Path, **changed: Any) -> Path:
    options: dict[str, Any] = {"template": "solar", "learning_rate": 1e-2, "every": 4, "sequence_length": 128}
    return instruct(model, out, data=[data], **options | changed)


def metrics(out: Path, *, timed: bool = True) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return rows if timed else [{key: value for key, value in row.items() if key not in TIMED} for row in rows]


def test_a_run_learns_and_writes_an_ordinary_checkpoint(model: Path, chats: Path, tmp_path: Path) -> None:
    out = fit(model, tmp_path / "out", chats, epochs=3)
    rows = metrics(out)
    losses = [row["loss"] for row in rows if "loss" in row]
    measured = [(row["step"], row["validation_loss"]) for row in rows if "validation_loss" in row]
    assert len(losses) == 15, "38 of 42 conversations three times, 8 per step"
    assert [step for step, _ in measured] == [0, 4, 8, 12, 15]
    assert measured[-1][1] < 0.6 * measured[0][1]

    assert sorted(path.name for path in out.iterdir()) == sorted(
        [
            *(path.name for path in model.iterdir()),
            *("README.md", "chat_template.jinja", "deepen.json", "metrics.jsonl", "training.png"),
        ]
    )
    for file in model.iterdir():
        if file.suffix != ".safetensors":
            assert (out / file.name).read_bytes() == file.read_bytes()
    assert AutoTokenizer.from_pretrained(out).chat_template == SOLAR
    manifest = read_manifest(out)
    assert (manifest["verb"], manifest["options"]["template"]) == ("instruct", "solar")
    assert manifest["results"]["conversations"] == 38
    assert manifest["results"]["held_out_conversations"] == 4
    assert manifest["results"]["validation_perplexity"] == rows[-1]["validation_perplexity"]
    assert "in held-out conversations: " in (out / "README.md").read_text()
    assert list(tmp_path.glob(".*")) == []


def test_an_answer_learned_by_heart_is_given_and_ended(model: Path, tmp_path: Path) -> None:
    """The whole way: what `generate` reads is what was learned, and it stops by itself."""
    from deepen.generate import generate

    file = tmp_path / "one.json"
    file.write_text(json.dumps([{"instruction": "Who?", "output": "Me, deepen."}] * 4))
    out = fit(model, tmp_path / "out", file, epochs=60, batch_rows=2, schedule="constant", every=1000)
    answer = generate(out, "Who?", engine="transformers", greedy=True, max_new_tokens=40)
    assert (answer.text, answer.finish_reason) == ("Me, deepen.", "stop")


def test_the_template_replaces_one_inside_the_tokenizer_config(model: Path, chats: Path, tmp_path: Path) -> None:
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": "{{ messages[0].content }}"}))
    out = fit(model, tmp_path / "out", chats, epochs=0.3)
    assert AutoTokenizer.from_pretrained(out).chat_template == SOLAR
    again = fit(out, tmp_path / "again", chats, epochs=0.3, template="model")
    assert AutoTokenizer.from_pretrained(again).chat_template == SOLAR


def test_the_validation_loss_is_the_mean_over_the_assistants_tokens(model: Path, chats: Path, tmp_path: Path) -> None:
    """Computed again from the written weights: text in bytes, log-softmax in float64, the answer's bytes and the end."""
    held_out = tmp_path / "held_out.json"
    answers = {"One?": "a", "Two?": "many, many"}
    held_out.write_text(json.dumps([{"prompt": key, "completion": value} for key, value in answers.items()]))
    out = fit(model, tmp_path / "out", chats, validation=held_out, epochs=0.5)
    trained = AutoModelForCausalLM.from_pretrained(out)
    total, terms = 0.0, 0
    for prompt, answer in answers.items():
        ids = [byte + 1 for byte in (prompt + answer).encode()] + [0]
        with torch.no_grad():
            likely = trained(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        for place in range(len(prompt), len(ids)):
            total -= likely[place - 1, ids[place]].item()
            terms += 1
    assert terms == 1 + 10 + 2
    assert metrics(out)[-1]["validation_loss"] == pytest.approx(total / terms, rel=1e-6)


def rows_of(*sizes: tuple[int, int]) -> list[Row]:
    """Rows of a length and a number of learned tokens."""
    drawn = np.random.default_rng(0)
    rows = []
    for length, terms in sizes:
        tokens = drawn.integers(1, 257, length, dtype=np.int32)
        labels = np.full(length, IGNORED, dtype=np.int32)
        labels[length - 1 - terms : length - 1] = tokens[length - terms :]
        rows.append(Row(tokens, labels, "here"))
    return rows


def test_micro_batches_are_one_padded_batch_and_that_is_separate_rows(model: Path) -> None:
    """Loss and gradients of rows with 30, 3 and 11 learned tokens: alone, two and one, and padded together."""
    rows = [sequence(row.tokens, row.labels) for row in rows_of((40, 30), (9, 3), (25, 11))]
    found = {}
    for size in (1, 2, 3, "packed"):
        network = AutoModelForCausalLM.from_pretrained(model)
        if size == "packed":
            packed = pack_sequences(rows, 64)
            assert [batch.tokens.shape for batch in packed] == [(1, 49), (1, 25)]
            batches = micro_batches(packed, 2, network.device)
        else:
            batches = micro_batches(rows, size, network.device)
        assert len(batches) == (1 if size == "packed" else -(-3 // size))
        terms = sum(batch.terms for batch in batches)
        assert terms == 44
        loss = sum(token_loss(network, batch, None)[0] / terms for batch in batches)
        loss.backward()
        found[size] = (loss.item(), network)
    network = found[1][1]
    assert found[1][0] == pytest.approx(mean_token_loss(network, rows, network.device), rel=1e-6)
    for size in (2, 3, "packed"):
        assert found[size][0] == pytest.approx(found[1][0], rel=1e-6)
        for one, other in zip(network.parameters(), found[size][1].parameters(), strict=True):
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-6)


def test_metrics_count_the_tokens_of_each_step(model: Path, chats: Path, tmp_path: Path) -> None:
    held_out = write_chats(tmp_path / "held_out.json", 4)
    rows = metrics(fit(model, tmp_path / "out", chats, validation=held_out, epochs=2))
    words = ["### User:\nSay .\n\n### Assistant:\n" + 2 * word for word in colours(42)]
    assert rows[-1]["tokens"] == 2 * sum(len(word) + 1 for word in words)  # and the end of the text
    counts = [row["tokens"] for row in rows if "loss" in row]
    assert len(set(np.diff(counts))) > 2, "conversations differ in length"


# Resuming -------------------------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from deepen.train import instruct, stage
torch.set_num_threads(1)
original = stage.learning_rate
def rate(step, **schedule):
    if step == 9:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(step, **schedule)
stage.learning_rate = rate
instruct.instruct(sys.argv[1], sys.argv[2], data=sys.argv[3], template="solar", learning_rate=1e-2, every=4,
                  sequence_length=128, epochs=3, save_every=4)
"""


def test_killed_and_resumed_it_ends_with_the_same_bits(model: Path, chats: Path, tmp_path: Path) -> None:
    undisturbed = fit(model, tmp_path / "undisturbed", chats, epochs=3)
    out = tmp_path / "out"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(model), str(out), str(chats)], env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists()
    with pytest.raises(OptionError, match="another output") as refused:
        fit(model, out, write_chats(tmp_path / "other.json", 42, first=1), epochs=3, save_every=4)
    assert "data was" in str(refused.value)
    with pytest.raises(OptionError, match="chat_template was"):
        fit(model, out, chats, epochs=3, save_every=4, template=_file(tmp_path / "t.jinja", SOLAR + "{# the same #}"))
    fit(model, out, chats, epochs=3, save_every=4)
    assert (out / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()
    assert metrics(out, timed=False) == metrics(undisturbed, timed=False)


def _file(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_the_same_command_gives_the_same_bits_and_another_seed_others(model: Path, chats: Path, tmp_path: Path) -> None:
    one, two = (fit(model, tmp_path / name, chats) for name in ("one", "two"))
    other = fit(model, tmp_path / "other", chats, seed=1)
    weights = [(out / "model.safetensors").read_bytes() for out in (one, two, other)]
    assert weights[0] == weights[1] != weights[2]


# Refusals -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"epochs": 0}, "--epochs: 0 is not above zero"),
        ({"epochs": float("inf")}, "--epochs: a run without end"),
        ({"batch_rows": 0}, "--batch-rows: 0 is not above zero"),
        ({"batch_rows": 2, "batch_tokens": 256}, "both --batch-rows and --batch-tokens"),
        ({"batch_tokens": 200}, "--batch-tokens: 200 is not a multiple of the sequence length 128"),
        ({"micro_batch": 0}, "--micro-batch: 0 is not above zero"),
        ({"validation_rows": 0}, "--validation-rows: 0 is not above zero"),
        ({"learning_rate": float("nan")}, "--learning-rate: nan is not above zero"),
        ({"schedule": "linear"}, "no schedule is called 'linear'"),
        ({"precision": "float8"}, "no precision 'float8'"),
        ({"too_long": "split"}, "--too-long: 'split' is no choice"),
        ({"sequence_length": 256}, "--sequence-length: the model takes 2 to 128 tokens at once, not 256"),
        ({"template": "model"}, "--template: the model has no chat template"),
        ({"template": "chatml"}, "the tokenizer has no token"),
        ({"warmup": 99}, "99 is neither a fraction"),
        ({"cap": ["x=3"]}, "caps none of the data files"),
    ],
)
def test_options_out_of_range_are_refused(
    model: Path, chats: Path, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        fit(model, tmp_path / "out", chats, **changed)
    assert not any(tmp_path.glob("*out*")), "nothing is begun"


def test_batch_tokens_are_rows_of_the_longest_conversation(model: Path, chats: Path, tmp_path: Path) -> None:
    out = fit(model, tmp_path / "out", chats, batch_tokens="512")
    assert read_manifest(out)["options"]["batch_rows"] == 4
    assert metrics(out)[-1]["step"] == 10  # 38 rows


def test_data_that_does_not_fit_is_refused(model: Path, chats: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"chats\.json, row 1: 42 of 42 conversations are longer than 16 tokens, up to "):
        fit(model, tmp_path / "out", chats, sequence_length=16)
    with pytest.raises(DataError, match="there is one conversation"):
        fit(model, tmp_path / "out", write_chats(tmp_path / "one.json", 1))
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(UnsupportedModelError, match="a GGUF file cannot be trained"):
        fit(gguf, tmp_path / "out", chats)
    with pytest.raises(UserError, match="is not finite"):
        fit(model, tmp_path / "out", chats, learning_rate=1e30, schedule="constant")
    assert not (tmp_path / "out").exists()


def test_long_conversations_are_dropped_or_cut_when_asked(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "long.jsonl"
    rows = [{"prompt": "Say", "completion": "x" * (200 if number % 3 == 0 else 5)} for number in range(30)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = {
        what: read_manifest(fit(model, tmp_path / what, file, too_long=what))["results"] for what in ("drop", "truncate")
    }
    assert results["drop"]["conversations"] + results["drop"]["held_out_conversations"] == 20
    assert results["truncate"]["conversations"] + results["truncate"]["held_out_conversations"] == 30


def test_the_verb_on_the_command_line(model: Path, chats: Path, tmp_path: Path) -> None:
    words = ["instruct", model, tmp_path / "out", "--data", chats, "--template", "solar", "--sequence-length", "128", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "deepen", *map(str, words), "--cap", f"{chats}=20", "--epochs", "0.5"],
        capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["out"] == str(tmp_path / "out")
    assert "Alpaca (instruction, output, input); 42 rows, 20 of them taken" in done.stderr
    bad = _file(tmp_path / "bad.jsonl", '{"messages": [{"role": "assistant", "content": "Hi"}]}\n')
    done = subprocess.run(
        [sys.executable, "-m", "deepen", "instruct", str(model), str(tmp_path / "b"), "--data", str(bad)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert f"error: {bad}, row 1: the conversation starts with the assistant" in done.stderr
