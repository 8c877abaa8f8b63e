"""What is given to schedulers: the batch script with a scheduler of two small programs, the manifest, the container file."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from trainable import write_checkpoint, write_text

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SRUN = f"""#!{sys.executable}
import os, signal, subprocess, sys

words = sys.argv[1:]
while words[0].startswith("-"):
    words.pop(0)
tasks = [
    subprocess.Popen(words, env=os.environ | {{"SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)}})
    for task in range(int(os.environ["SLURM_NTASKS"]))
]
signal.signal(signal.SIGTERM, lambda *_: [task.send_signal(signal.SIGTERM) for task in tasks])
sys.exit(max(task.wait() % 256 for task in tasks))
"""
SCONTROL = """#!/bin/bash
case $1 in
    show) echo 127.0.0.1 ;;
    *) echo "$@" >>"$SCONTROL_LOG" ;;
esac
"""
RECIPE = """
name: tiny
base: base
stages:
  - {stage: scale, drop: 1}
  - {stage: pretrain, data: train.txt, tokens: 7680, sequence_length: 32, batch_tokens: 64, save_every: 1000, every: 1000,
     precision: float32, validation_tokens: 64}
"""


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """A node with two tasks, in a folder with a recipe."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    write_checkpoint(tmp_path / "base")
    write_text(tmp_path / "train.txt", 4000)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    return os.environ | {
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "PYTHON": sys.executable, "SCONTROL_LOG": str(tmp_path / "log"),
        "SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "node[1]", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_CPUS_PER_TASK": "1",
    }  # fmt: skip


def start(cluster: dict[str, str], *words: str) -> "subprocess.Popen[str]":
    command = ["bash", str(DEPLOY / "slurm.sbatch"), *words]
    folder = Path(cluster["SCONTROL_LOG"]).parent
    return subprocess.Popen(command, cwd=folder, env=cluster, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_told_to_end_the_job_saves_goes_back_into_the_queue_and_continues(cluster: dict[str, str], tmp_path: Path) -> None:
    job = start(cluster, "tiny.yaml", "--out", str(tmp_path / "out"))
    metrics = tmp_path / "out" / ".pretrain.partial" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (metrics.exists() and metrics.read_text().count('"loss"') > 4):
        assert time.monotonic() < deadline
        assert job.poll() is None, job.communicate()[1]
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)  # as SLURM does, to the script alone
    _, errors = job.communicate(timeout=300)
    assert job.returncode == 143, errors
    assert "the same command continues" in errors
    assert (tmp_path / "log").read_text() == "requeue 77\n"
    (saved,) = (tmp_path / "out" / ".pretrain.partial" / ".training" / "run").iterdir()
    assert 4 < int(saved.name) < 120

    again = start(cluster, "tiny.yaml", "--out", str(tmp_path / "out"))
    _, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    rows = [json.loads(line) for line in (tmp_path / "out" / "pretrain" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 121))
    assert (tmp_path / "log").read_text() == "requeue 77\n", "what is done is not queued again"


def test_a_mistake_does_not_go_back_into_the_queue(cluster: dict[str, str], tmp_path: Path) -> None:
    job = start(cluster, "tiny.yaml", "--set", "pretrain.token=5")
    _, errors = job.communicate(timeout=300)
    assert job.returncode == 2
    assert errors.count("token") >= 1
    assert errors.count("error:") == 1, "the first process speaks for all"
    assert not (tmp_path / "log").exists()
    nothing = start(cluster)
    assert nothing.communicate(timeout=20)[1].startswith("error: which recipe?")
    assert nothing.returncode == 2


def test_the_signal_comes_early_enough_to_be_passed_on() -> None:
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?", (DEPLOY / "slurm.sbatch").read_text(), flags=re.MULTILINE))
    assert re.fullmatch(r"B:TERM@(\d+)", options["signal"])
    assert {"requeue", "nodes", "ntasks-per-node", "gpus-per-node", "time"} <= options.keys()
    assert options["open-mode"] == "append", "a log that is begun anew with each try"
    assert options["ntasks-per-node"] == options["gpus-per-node"], "a process for each GPU"


def test_the_manifest_is_one_that_a_cluster_takes() -> None:
    service, job = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    assert (service["apiVersion"], service["kind"], service["spec"]["clusterIP"]) == ("v1", "Service", "None")
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    pods, name = job["spec"]["template"], job["metadata"]["name"]
    assert service["spec"]["selector"].items() <= pods["metadata"]["labels"].items()
    assert pods["spec"]["subdomain"] == service["metadata"]["name"]
    assert job["spec"]["completionMode"] == "Indexed"
    (container,) = pods["spec"]["containers"]
    words = dict(word.lstrip("-").partition("=")[::2] for word in container["args"])
    assert int(words["nnodes"]) == job["spec"]["completions"] == job["spec"]["parallelism"]
    assert int(words["nproc-per-node"]) == container["resources"]["limits"]["nvidia.com/gpu"]
    assert words["master-addr"] == f"{name}-0.{service['metadata']['name']}"
    assert container["args"][container["args"].index("-m") + 1 :][:2] == ["deepen", "run"]
    assert int(words["shutdown-timeout"]) < pods["spec"]["terminationGracePeriodSeconds"]
    assert pods["spec"]["restartPolicy"] == "Never", "what a policy for failures demands"
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pods["spec"]["volumes"]}
    assert pods["spec"]["securityContext"]["runAsNonRoot"]
    assert not container["securityContext"]["allowPrivilegeEscalation"]
    assert all(isinstance(variable.get("value", ""), str) for variable in container["env"])
    known = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert all(f"--{word}" in known for word in words if word not in {"m", "deepen", "run", "recipe.yaml"})


def test_the_container_file_has_two_stages_and_an_ordinary_user() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    stages = re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]
    assert len(stages) == 2
    copied = [word for line in re.findall(r"^COPY (?!--from)(.*) \S+$", stages[0], flags=re.MULTILINE) for word in line.split()]
    assert {"src", "recipes", "pyproject.toml", "LICENSE"} <= set(copied)
    shown = set(re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), flags=re.MULTILINE))
    for word in copied:
        assert (ROOT / word).exists()
        assert word in shown
    (user,) = re.findall(r"^USER (\d+)$", stages[1], flags=re.MULTILINE)
    assert int(user) > 0
    assert f"runAsUser: {user}\n" in (DEPLOY / "kubernetes.yaml").read_text()
    assert "apt-get" not in text
