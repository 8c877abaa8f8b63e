"""Twenty thousand files from a stranger in each run of the tests; `python -m faults.hostile --count` reads more."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deepen.errors import CheckpointError, PlanError
from deepen.export.vocabulary import read_vocabulary
from deepen.plan.file import read_plan
from exportable import gpt2_style, write_byte_level

TESTS = Path(__file__).parents[1]
COUNT = 22_000


def test_no_hostile_file_does_more_than_being_refused(tmp_path):
    paths = [str(TESTS), str(TESTS.parent / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-m", "faults.hostile", "--count", str(COUNT), "--found", str(tmp_path / "found")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    problems = [each.read_text()[-1500:] for each in (tmp_path / "found").glob("*.problem")]
    assert problems == [], "\n".join(problems)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    assert report["files"] == COUNT
    assert min(report["by_kind"].values()) == COUNT // 11


@pytest.mark.parametrize("added", ["x", [3], ["x"], [[]], [{}], [{"id": []}], {"a": 1}])
def test_a_tokenizer_with_nonsense_among_its_tokens_is_refused(tmp_path, added):
    write_byte_level(tmp_path, gpt2_style())
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer | {"added_tokens": added}))
    with pytest.raises(CheckpointError, match="tokenizer"):
        read_vocabulary(tmp_path, 512, {})


def test_a_plan_of_another_depth_says_what_next(tmp_path):
    (tmp_path / "plan.yaml").write_text("source_layers: 7\nlayers: [0, 1]\n")
    with pytest.raises(PlanError, match="base of 7 layers") as refused:
        read_plan(tmp_path / "plan.yaml", 6)
    assert refused.value.next
