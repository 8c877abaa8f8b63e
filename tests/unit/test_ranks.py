"""Several processes train as one does: gloo on this machine, FSDP2, states that move between numbers of processes."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from trainable import write_checkpoint, write_text

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
OPTIONS = {
    "sequence_length": 32, "batch_tokens": 96, "learning_rate": 1e-2, "every": 3, "save_every": 2, "validation_tokens": 160,
    "precision": "float32",
}  # fmt: skip
# Rows of a step (3), windows to measure on (5) and the vocabulary (257) are no multiples of the number of processes
RUNS = {
    "tied": {"model": "tied"},
    "untied": {"model": "untied", "micro_batch": 3},
    "taught": {"model": "untied", "teacher": "tied", "teacher_share": 0.5},
    "lora": {"model": "tied", "train": "lora"},
}
MEASURED = re.compile("second|joules")
SCRIPT = """
import json, sys
from deepen import pretrain
for out, options in json.loads(sys.argv[1]).items():
    pretrain(options.pop("model"), out, **options)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    write_checkpoint(folder / "tied")
    write_checkpoint(folder / "untied", tie_word_embeddings=False)
    texts = [write_text(folder / "part", 40, seed=seed).read_text() for seed in range(20)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder


def words(place: Path, out: str, name: str, **changed: Any) -> dict[str, dict[str, Any]]:
    """What the script shall do."""
    run = RUNS[name] | OPTIONS | {"tokens": 10 * 96, "data": str(place / "text.jsonl")} | changed
    run |= {key: str(place / run[key]) for key in ("model", "teacher") if key in run}
    return {str(place / out): run}


def launch(what: dict[str, Any], *launcher: str) -> "subprocess.Popen[str]":
    module = ["-m", "torch.distributed.run", *launcher] if launcher else []
    script = Path(next(iter(what))).parent / "script.py"
    script.write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, *module, str(script), json.dumps(what)], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )


def finish(*processes: "subprocess.Popen[str]") -> str:
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(errors)
    return errors[0]


def rows(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if not MEASURED.search(key)} for line in lines]


def assert_same(one: Path, other: Path) -> None:
    first, second = rows(one), rows(other)
    assert [row["step"] for row in first] == [row["step"] for row in second]
    for a, b in zip(first, second, strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    weights = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert weights[0].keys() == weights[1].keys()
    assert all((weights[0][name] - weights[1][name]).abs().max() < 1e-4 for name in weights[0])


@pytest.fixture(scope="module")
def alone(place: Path) -> Path:
    """Every run in one process."""
    finish(launch({key: value for name in RUNS for key, value in words(place, f"one-{name}", name).items()}))
    return place


def test_two_processes_train_as_one(alone: Path) -> None:
    what = {key: value for name in RUNS for key, value in words(alone, f"two-{name}", name).items()}
    messages = finish(launch(what, "--nproc-per-node", "2"))
    for name in RUNS:
        assert_same(alone / f"one-{name}", alone / f"two-{name}")
        assert "loss" in rows(alone / f"one-{name}")[1]
    assert messages.count("matrices are") == 0, "what was asked for is not announced"
    losses = [row["validation_loss"] for row in rows(alone / "one-tied") if "validation_loss" in row]
    assert losses[-1] < losses[0] - 0.5, "something was learned"


def test_two_nodes_train_as_one(alone: Path) -> None:
    """Each node has a launcher of its own and one process: sharded over both."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nodes = [
        launch(
            words(alone, "nodes", "tied"),
            *("--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(number)),
            *("--master-addr", "127.0.0.1", "--master-port", str(port)),
        )
        for number in range(2)
    ]
    finish(*nodes)
    assert_same(alone / "one-tied", alone / "nodes")


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_told_to_end_it_saves_and_continues_on_another_number_of_processes(alone: Path, before: int, after: int) -> None:
    """SIGTERM, as a scheduler sends it, in the middle of a run whose states are otherwise far apart."""
    out = f"moved-{before}"
    what = words(alone, out, "untied", save_every=1000, tokens=120 * 96, learning_rate=1e-3)
    launcher = {1: (), 2: ("--nproc-per-node", "2")}
    process = launch(what, *launcher[before])
    metrics, states = alone / f".{out}.partial" / "metrics.jsonl", alone / f".{out}.partial" / ".training" / "run"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count('"loss"') > 4):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "the same command continues" in errors
    (saved,) = states.iterdir()
    assert rows(alone / f".{out}.partial")[-1]["step"] == int(saved.name) < 120
    finish(launch(what, *launcher[after]))
    straight = alone / "straight"
    if not straight.exists():
        finish(launch(words(alone, "straight", "untied", save_every=1000, tokens=120 * 96, learning_rate=1e-3)))
    assert_same(straight, alone / out)
