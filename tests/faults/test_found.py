"""What the trials found, each as a test of its own."""

import errno
import os
import signal
import subprocess
import sys

import pytest
import torch

from deepen.errors import StorageError
from deepen.output import storage_errors
from deepen.synthesize import synthesize
from deepen.train.state import save_state
from faults.verbs import write
from marbles import Endpoint, problem


def test_a_full_disk_while_a_state_is_saved_is_no_traceback(tmp_path, monkeypatch):
    from torch.distributed.checkpoint import filesystem

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(filesystem, "_write_files_from_queue", full)
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    (tmp_path / ".training").mkdir()
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(StorageError, match="the disk is full"), storage_errors(tmp_path):
        save_state(tmp_path, "run", 1, model, optimizer, keep=1)


@pytest.mark.parametrize("failing", ["out.report.json", "out.report.md", "pairs.jsonl", "out.jsonl"])
def test_a_disk_that_fails_while_files_appear_does_not_bar_the_next_run(tmp_path, monkeypatch, failing):
    from deepen import output

    publish = output._publish

    def fail(partial, out, *, overwrite):
        if out.name == failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        publish(partial, out, overwrite=overwrite)

    seeds = tmp_path / "seeds.jsonl"
    write(seeds, problem(1))
    with Endpoint() as endpoint:
        options = {"seeds": seeds, "endpoint": endpoint.url, "pairs": tmp_path / "pairs.jsonl", "kinds": "answer"}
        with monkeypatch.context() as patch:
            patch.setattr(output, "_publish", fail)
            with pytest.raises(StorageError, match="returned an error"):
                synthesize(tmp_path / "out.jsonl", **options)
        assert sorted(os.listdir(tmp_path)) == ["out.answers.jsonl", "seeds.jsonl"]
        synthesize(tmp_path / "out.jsonl", **options)


def test_sigterm_is_told(tmp_path):
    code = "import os, signal, sys; from deepen import cli; cli.app = lambda **_: os.kill(os.getpid(), signal.SIGTERM) or 0\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}sys.exit(cli.run_program(['plan']))"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stderr == "terminated\n  Next: run the same command again\n"
