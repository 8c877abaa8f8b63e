"""A recipe under a launcher: two processes train what one trains, and only the first does the rest."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from exportable import write_checkpoint
from trainable import write_text

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
RECIPE = """
name: tiny
base: base
stages:
  - {stage: scale, drop: 1}
  - {stage: evaluate, data: held_out.txt, window: 64, tokens: 256}
  - {stage: pretrain, data: train.txt, tokens: 384, sequence_length: 32, batch_tokens: 96, validation: held_out.txt,
     validation_tokens: 160, every: 2, learning_rate: 1e-2, precision: float32, control: true, base: base}
  - {stage: instruct, data: chats.json, template: solar, sequence_length: 128, batch_rows: 3,
     validation_rows: 2, precision: float32}
  - {stage: merge, models: [pretrain, instruct]}
  - {stage: evaluate, name: healed, data: held_out.txt, window: 64, tokens: 256}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("together")
    write_checkpoint(folder / "base")
    write_text(folder / "train.txt", 1000)
    write_text(folder / "held_out.txt", 300, seed=1)
    chats = [{"instruction": f"Say {n}.", "input": "", "output": f"{n} {n}"} for n in range(8)]
    (folder / "chats.json").write_text(json.dumps(chats))
    (folder / "tiny.yaml").write_text(RECIPE)
    return folder


def deepen(place: Path, *words: str, processes: int = 1) -> "subprocess.CompletedProcess[str]":
    launcher = ["torch.distributed.run", "--nproc-per-node", str(processes), "-m"] if processes > 1 else []
    command = [sys.executable, "-m", *launcher, "deepen", *words]
    return subprocess.run(command, cwd=place, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


def test_two_processes_run_a_recipe_as_one_does(place: Path) -> None:
    reports = {}
    for processes in (1, 2):
        done = deepen(place, "run", "tiny.yaml", "--out", f"by-{processes}", "--json", processes=processes)
        assert done.returncode == 0, done.stderr
        reports[processes] = json.loads(done.stdout)  # one object: only the first process prints
        assert done.stderr.count("[1/6] scale") == 1
    for one, two in zip(reports[1]["stages"], reports[2]["stages"], strict=True):
        assert (one["name"], one["model"]) == (two["name"], two["model"])
        if one["result"]:
            found = [stage["result"]["tasks"]["perplexity"]["value"] for stage in (one, two)]
            assert found[0] == pytest.approx(found[1], rel=1e-4)
    losses = [
        [json.loads(line).get("loss") for line in (place / f"by-{n}" / stage / "metrics.jsonl").read_text().splitlines()]
        for n in (1, 2)
        for stage in ("pretrain", "instruct")
    ]
    assert [each for each in losses[0] + losses[1] if each] == pytest.approx(
        [each for each in losses[2] + losses[3] if each], rel=1e-4
    )
    again = deepen(place, "run", "tiny.yaml", "--out", "by-2", processes=2)
    assert again.returncode == 0
    assert again.stderr.count("done already") == 6


def test_an_error_is_told_once_and_ends_all(place: Path) -> None:
    failed = deepen(place, "run", "tiny.yaml", "--out", "missing", "--set", "pretrain.data=nowhere.txt", processes=2)
    assert failed.returncode != 0
    assert failed.stderr.count("there is no nowhere.txt") == 1
    late = deepen(place, "run", "tiny.yaml", "--out", "late", "--set", "instruct.sequence_length=512", processes=2)
    assert late.returncode != 0
    assert "the model takes 2 to 256 tokens at once" in late.stderr
    assert (place / "late" / "pretrain" / "deepen.json").is_file()


def test_a_dry_run_under_a_launcher_meets_nobody(place: Path) -> None:
    environment = ENVIRONMENT | {"RANK": "0", "WORLD_SIZE": "2"}
    command = [sys.executable, "-m", "deepen", "run", "tiny.yaml", "--out", str(place / "dry"), "--dry-run"]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("to do") == 6
