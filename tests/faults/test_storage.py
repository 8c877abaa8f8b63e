"""Disks that are full, failing, read-only or writing short, under each verb."""

import pytest

from faults.runs import run_trials
from faults.verbs import VERBS

COUNTS = {"ENOSPC": 1, "EIO": 1, "EROFS": 1, "short": 1, "full": 1}


pytestmark = pytest.mark.nightly  # a minute and a half; test_kill.py stays in every run


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    return run_trials(tmp_path_factory.mktemp("storage") / "report.json", COUNTS)


@pytest.mark.parametrize("verb", VERBS)
def test_a_failing_disk_is_told_and_leaves_nothing_wrong(reports, verb):
    report = reports[verb]
    assert report["violations"] == []
    assert report["trials"] == COUNTS
