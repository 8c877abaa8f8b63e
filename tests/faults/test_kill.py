"""Each verb that writes is killed and stopped at a handful of points of its life; `python -m faults.trials` takes more."""

import pytest

from faults.runs import run_trials
from faults.verbs import VERBS

COUNTS = {"kill": 1, "torn": 1, "bytes": 1, "SIGTERM": 1, "SIGINT": 1}


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    return run_trials(tmp_path_factory.mktemp("kill") / "report.json", COUNTS)


@pytest.mark.parametrize("verb", VERBS)
def test_killed_or_stopped_anywhere_it_ends_as_if_undisturbed(reports, verb):
    report = reports[verb]
    assert report["violations"] == []
    assert report["trials"] == COUNTS
    assert report["calls"] >= 20
