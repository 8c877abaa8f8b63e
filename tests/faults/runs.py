"""Start the trials in a process of their own, as tests do: one warm process for all verbs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

_TESTS = Path(__file__).parents[1]


def run_trials(report: Path, counts: dict[str, int], *verbs: str) -> dict[str, dict[str, Any]]:
    """What the trials found, by verb."""
    words = [word for kind, count in counts.items() for word in (f"--{kind}", str(count))]
    paths = [str(_TESTS), str(_TESTS.parent / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "faults.trials", *verbs, *words, "--json", str(report)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert report.exists(), done.stderr[-3000:]
    return {each["verb"]: each for each in json.loads(report.read_text())}
