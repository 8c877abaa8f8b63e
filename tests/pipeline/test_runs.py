"""What keeps a run safe: one at a time, no hash computed twice, outputs edited by hand, and what is known before."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import deepen
from deepen.errors import OutputError, RecipeError, StorageError
from deepen.pipeline import check, run
from deepen.pipeline.hashes import HASHES_FILE, Hashes
from deepen.pipeline.lock import only_run
from trainable import write_checkpoint, write_text

RECIPE = """
name: safe
base: base
data: texts
stages:
  - {stage: scale, drop: 0}
  - {stage: pretrain, data: train.txt, tokens: 128, sequence_length: 32, batch_tokens: 64, validation: held_out.txt,
     validation_tokens: 64, every: 2, save_every: 1,
     precision: float32}
  - {stage: evaluate, data: held_out.txt, window: 32, tokens: 128}
  - {stage: merge, name: mixed, models: [scale, pretrain]}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a two-layer model, two texts and a recipe."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    write_checkpoint(tmp_path / "base")
    (tmp_path / "texts").mkdir()
    write_text(tmp_path / "texts/train.txt", 300)
    write_text(tmp_path / "texts/held_out.txt", 100, seed=1)
    (tmp_path / "safe.yaml").write_text(RECIPE)
    return tmp_path


def statuses(report: dict) -> list[str]:
    return [stage["status"] for stage in report["stages"]]


def flip_last_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_two_runs_in_one_folder_are_refused_by_the_name_of_the_holder(place: Path) -> None:
    with only_run(place / "runs/safe"), pytest.raises(OutputError, match=rf"another run is at work.*process {os.getpid()} on"):
        run("safe.yaml")
    assert [file.name for file in (place / "runs/safe").iterdir()] == [".lock"]
    assert run("safe.yaml", until="scale")["stages"][0]["status"] == "to do"


def test_a_killed_run_leaves_no_lock(place: Path) -> None:
    code = "import sys, time; from pathlib import Path; from deepen.pipeline.lock import only_run\n"
    code += "with only_run(Path('runs')): print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match=f"process {process.pid}"), only_run(Path("runs")):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    with only_run(Path("runs")):
        pass


def test_an_output_edited_by_hand_is_refused_adopted_or_made_again(place: Path) -> None:
    run("safe.yaml")
    weights = place / "runs/safe/pretrain/model.safetensors"
    made = weights.read_bytes()
    flip_last_byte(weights)
    with pytest.raises(OutputError, match=r"stage 'pretrain' was changed by hand.*\n.*--adopt"):
        run("safe.yaml")
    assert statuses(run("safe.yaml", dry_run=True))[1] == "edited"
    again = run("safe.yaml", overwrite=True)
    assert statuses(again) == ["done", "edited", "done", "done"]  # the same bytes come again, so what follows is done
    assert weights.read_bytes() == made

    flip_last_byte(weights)
    adopted = run("safe.yaml", adopt=True, until="pretrain")
    assert statuses(adopted) == ["done", "done"]
    (change,) = json.loads((place / "runs/safe/pretrain.json").read_text())["adopted"]
    assert change["was"] != change["is"]
    with pytest.raises(OutputError, match="stage 'evaluate' was done with other options or another input"):
        run("safe.yaml")
    assert statuses(run("safe.yaml", overwrite=True)) == ["done", "done", "changed", "changed"]
    assert weights.read_bytes() != made


def test_an_edited_judgement_is_refused(place: Path) -> None:
    run("safe.yaml")
    file = place / "runs/safe/evaluate.json"
    record = json.loads(file.read_text())
    record["result"]["tasks"]["perplexity"]["value"] /= 2
    file.write_text(json.dumps(record))
    with pytest.raises(OutputError, match="stage 'evaluate' was changed by hand"):
        run("safe.yaml")


def test_an_edit_is_found_before_the_first_stage_is_made(place: Path) -> None:
    run("safe.yaml")
    shutil.rmtree(place / "runs/safe/scale")
    flip_last_byte(place / "runs/safe/mixed/model.safetensors")
    with pytest.raises(OutputError, match="'mixed' was changed by hand"):
        run("safe.yaml")
    assert not (place / "runs/safe/scale").exists()


def test_a_change_of_one_setting_reruns_that_stage_and_what_follows(place: Path) -> None:
    run("safe.yaml")
    changed = {"set": ["pretrain.learning_rate=1e-3"]}
    assert statuses(run("safe.yaml", dry_run=True, **changed)) == ["done", "changed", "changed", "changed"]
    assert statuses(run("safe.yaml", overwrite=True, **changed)) == ["done", "changed", "changed", "changed"]
    assert statuses(run("safe.yaml", **changed)) == ["done"] * 4


def test_the_second_call_reads_no_weights_and_imports_no_torch(place: Path) -> None:
    run("safe.yaml")
    code = """
import sys
from deepen.pipeline import hashes, run
hashes.hashlib.file_digest = None  # whatever is hashed again fails
print([stage["status"] for stage in run("safe.yaml")["stages"]], sorted({"torch", "transformers"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{['done'] * 4} []\n"


def test_a_file_is_hashed_again_when_anything_about_it_has_changed(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    hashes = Hashes(tmp_path)
    first = hashes.file(file)
    hashes.keep()
    assert json.loads((tmp_path / HASHES_FILE).read_text())[str(file)][-1] == first
    before = file.stat()
    file.write_bytes(b"two")  # as long, and as old
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    second = Hashes(tmp_path).file(file)
    assert second != first
    (tmp_path / HASHES_FILE).write_text("[1]")
    assert Hashes(tmp_path).file(file) == second


def test_a_file_that_is_written_while_it_is_hashed_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    hashes = Hashes(tmp_path)
    ticks = iter([time.time_ns(), time.time_ns()])
    monkeypatch.setattr(time, "sleep", lambda _: file.write_bytes(b"two"))
    monkeypatch.setattr(time, "time_ns", lambda: next(ticks))
    hashes.file(file)
    hashes.keep()
    assert not (tmp_path / HASHES_FILE).exists()


def test_all_problems_are_told_at_once(place: Path) -> None:
    (place / "bad.yaml").write_text("""
name: bad
base: base
data: texts
stages:
  - {stage: scale, drop: 2, from: deepest}
  - {stage: scale, name: deepest, drop: 5, from: base}
  - {stage: pretrain, from: base, data: tran.txt, tokens: 5GB, learning_rat: 1}
  - {stage: evaluate, from: base, data: held_in.txt}
  - {stage: merge, name: one, models: [base, two]}
  - {stage: merge, name: two, models: [one, base]}
  - {stage: merge, name: three, models: [base, four]}
  - {stage: scale, name: four, from: base, repeat: 0:2}
  - {stage: scale, name: five, from: bass, repeat: 0:2}
""")
    with pytest.raises(RecipeError) as caught:
        check("bad.yaml")
    for line in (
        "stages.0.from: the stage 'deepest' comes later; move it above this one",
        "stages.1: --drop 5",
        'stages.2.learning_rat: unknown key, did you mean "learning_rate"?',
        "stages.2.tokens: '5GB' is not a count such as 4096, 100k or 1.5M: GB is a unit of bytes",
        'stages.3.data: there is no texts/held_in.txt, did you mean "held_out.txt"?',
        "stages.4.models.1: a circle: 'one' is made from 'two' from 'one'",
        "stages.6.models.1: the stage 'four' comes later",
        "stages.8.from: no stage 'bass' above, did you mean \"base\"?",
    ):
        assert line in str(caught.value)
    assert not (place / "runs").exists()


def test_what_does_not_fit_into_memory_or_onto_the_disk_is_known_before(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deepen import host
    from deepen.pipeline import sizes

    found = {"gpus": [], "memory": {"total_bytes": 400_000, "available_bytes": 400_000}}
    monkeypatch.setattr(sizes, "doctor", lambda: found)
    with pytest.raises(RecipeError, match=r"stages\.1 \(pretrain\): training takes .* of memory .* 400 kB: train: lora \("):
        check("safe.yaml")
    assert check("safe.yaml", set=["pretrain.train=lora", "pretrain.lora_rank=1"])["recipe"] == "safe"
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert check("safe.yaml")["recipe"] == "safe"  # four machines with as much
    monkeypatch.delenv("WORLD_SIZE")
    found["gpus"] = [{"name": "small", "memory_bytes": 100_000, "driver": "1"}]
    with pytest.raises(RecipeError, match="a GPU has 100 kB"):
        check("safe.yaml")
    monkeypatch.undo()
    assert host.host_memory().total > 400_000
    monkeypatch.chdir(place)
    monkeypatch.setattr(sizes.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 300_000))
    with pytest.raises(RecipeError, match=r"stages\.1 \(pretrain\): with what is made before it, it takes .* of disk"):
        check("safe.yaml")


@pytest.mark.parametrize(
    ("file", "text", "name"),
    [
        ("README.md", "---\nlicense: cc-by-nc-nd-4.0\n---\n# A model\n", "cc-by-nc-nd-4.0"),
        ("README.md", "---\nlicense: other\nlicense_name: acme-no-derivatives\n---\n", "acme-no-derivatives"),
        ("LICENSE.txt", "Creative Commons\nAttribution-NoDerivatives 4.0 International\n", "Attribution-NoDerivatives"),
    ],
)
def test_a_licence_that_forbids_derivatives_is_named_before_the_start(place: Path, file: str, text: str, name: str) -> None:
    assert check("safe.yaml")["warnings"] == []
    (place / "base/README.md").write_text("---\nlicense: apache-2.0\ntags: [and, windows]\n---\nNo end in sight.\n")
    assert check("safe.yaml")["warnings"] == []
    (place / "base" / file).write_text(text)
    (warning,) = check("safe.yaml")["warnings"]
    assert name in warning
    words = [sys.executable, "-m", "deepen", "run", "safe.yaml", "--until", "scale"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stderr.index(name) < done.stderr.index("[1/1] scale")


def test_a_full_disk_leaves_nothing_half_made_and_the_run_goes_on_later(place: Path) -> None:
    code = (
        "import resource, sys\n"
        "from deepen.cli import run_program\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))\n"
        "sys.exit(run_program(['run', 'safe.yaml']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == StorageError.exit_code, done.stderr
    assert "the disk is full" in done.stderr
    finished = [stage for stage in ("scale", "pretrain", "mixed") if (place / "runs/safe" / stage).exists()]
    assert finished == ["scale"]
    report = run("safe.yaml")
    assert statuses(report) == ["done", "to do", "to do", "to do"]
    straight = run("safe.yaml", out="straight")
    for stage in ("pretrain", "mixed"):
        weights = [Path(each["folder"]) / stage / "model.safetensors" for each in (report, straight)]
        assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_stage_is_made_again_from_its_manifest_to_the_same_bytes(place: Path) -> None:
    run("safe.yaml")
    (place / "again").mkdir()
    for name in ("scale", "pretrain", "mixed"):
        manifest = json.loads((place / "runs/safe" / name / "deepen.json").read_text())
        source, again = manifest["source"], place / "again" / name
        if manifest["verb"] == "merge":
            deepen.merge(again, [model["model"] for model in source["models"]], **manifest["options"])
        else:
            getattr(deepen, manifest["verb"])(source["model"], again, **manifest["options"])
        for file in ("model.safetensors", "config.json", "tokenizer.json"):
            assert (again / file).read_bytes() == (place / "runs/safe" / name / file).read_bytes(), (name, file)


def test_killed_at_any_moment_the_same_weights_come(place: Path) -> None:
    straight = run("safe.yaml", out="straight")
    moments = random.Random(0)
    words = [sys.executable, "-m", "deepen", "run", "safe.yaml", "--out", "killed"]
    seen = set()
    for _ in range(4):
        # a moment after something new has appeared: within a stage, or between two
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (new := _made(place / "killed") - seen):
            time.sleep(0.01)
        if process.poll() is None:
            seen |= new
            time.sleep(moments.uniform(0.0, 0.3))
            process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(words, check=True, capture_output=True)
    for stage in ("scale", "pretrain", "mixed"):
        weights = [Path(folder) / stage / "model.safetensors" for folder in (straight["folder"], "killed")]
        assert weights[0].read_bytes() == weights[1].read_bytes(), stage


def _made(folder: Path) -> set[str]:
    return {file.name for file in folder.glob("*") if file.is_dir()} if folder.is_dir() else set()
