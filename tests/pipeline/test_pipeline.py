"""A whole recipe with a tiny model: what is done is skipped, what changed is refused or made again."""

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deepen.errors import OptionError, OutputError, RecipeError
from deepen.pipeline import check, find_recipe, recipes, run
from deepen.recipe import load_recipe
from exportable import write_checkpoint
from trainable import write_text

RECIPE = """
name: tiny
base: base
stages:
  - {stage: evaluate, name: before, data: held_out.txt, window: 64, tokens: 256}
  - {stage: scale, drop: 1}
  - {stage: evaluate, name: after, data: held_out.txt, window: 64, tokens: 256}
  - {stage: pretrain, data: train.txt, tokens: 256, sequence_length: 32, batch_tokens: 64, validation: held_out.txt,
     validation_tokens: 128, every: 2, base: base}
  - {stage: evaluate, name: healed, data: held_out.txt, window: 64, tokens: 256}
  - {stage: export, quantize: F16}
  - {stage: scale, name: deeper-gguf, repeat: 0:2}
  - {stage: generate, prompt: the old river, greedy: true, max_new_tokens: 4}
"""
CHEAP = """
name: cheap
base: base
stages:
  - {stage: scale, drop: 1}
  - {stage: evaluate, data: held_out.txt, window: 64, tokens: 256}
  - {stage: scale, name: deepest, drop: 2}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a three-layer model and two texts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)  # these models are too small to share
    write_checkpoint(tmp_path / "base")
    write_text(tmp_path / "train.txt", 1000)
    write_text(tmp_path / "held_out.txt", 300, seed=1)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    (tmp_path / "cheap.yaml").write_text(CHEAP)
    return tmp_path


def statuses(report: dict) -> list[str]:
    return [stage["status"] for stage in report["stages"]]


def test_a_whole_recipe(place: Path) -> None:
    report = run("tiny.yaml")
    stages = {stage["name"]: stage for stage in report["stages"]}
    assert statuses(report) == ["to do"] * 8
    assert {name: stage["model"]["layers"] for name, stage in stages.items()} == {
        "before": 3, "scale": 4, "after": 4, "pretrain": 4, "healed": 4, "export": 4, "deeper-gguf": 6, "generate": 6,
    }  # fmt: skip
    perplexity = {name: stages[name]["result"]["tasks"]["perplexity"]["value"] for name in ("before", "after", "healed")}
    assert perplexity["healed"] < perplexity["after"]
    assert stages["generate"]["result"]["engine"] == "llamacpp"
    assert stages["generate"]["result"]["completion_tokens"] == 4
    assert report["folder"] == "runs/tiny"
    assert report["pictures"] == ["runs/tiny/pretrain/recovery.png"]
    assert (place / "runs/tiny/scale/deepen.json").is_file()
    assert (place / "runs/tiny/export.gguf").is_file()
    assert (place / "runs/tiny/deeper-gguf.gguf").is_file()
    assert json.loads((place / "runs/tiny/healed.json").read_text())["result"] == stages["healed"]["result"]
    assert json.loads(json.dumps(report)) == report

    again = run("tiny.yaml")
    assert statuses(again) == ["done"] * 8
    for key in ("result", "output", "seconds", "command", "model"):
        assert [stage[key] for stage in again["stages"]] == [stage[key] for stage in report["stages"]]


def test_the_same_content_under_other_dates_is_done(place: Path) -> None:
    run("cheap.yaml")
    for file in [*(place / "base").iterdir(), place / "held_out.txt"]:
        content = file.read_bytes()
        file.unlink()
        file.write_bytes(content)
    assert statuses(run("cheap.yaml")) == ["done"] * 3


def test_changed_options_and_inputs_are_refused_unless_told_to_overwrite(place: Path) -> None:
    run("cheap.yaml")
    made = (place / "runs/cheap/scale/config.json").read_text()
    with pytest.raises(OutputError, match="stage 'scale' was done with other options or another input"):
        run("cheap.yaml", set=["scale.drop=0"])
    assert (place / "runs/cheap/scale/config.json").read_text() == made
    report = run("cheap.yaml", set=["scale.drop=0"], overwrite=True)
    assert statuses(report) == ["changed"] * 3
    assert [stage["model"]["layers"] for stage in report["stages"]] == [6, 6, 8]
    assert statuses(run("cheap.yaml", set=["scale.drop=0"])) == ["done"] * 3


def test_a_changed_text_is_another_input(place: Path) -> None:
    run("cheap.yaml")
    write_text(place / "held_out.txt", 300, seed=2)
    with pytest.raises(OutputError, match="stage 'evaluate'"):
        run("cheap.yaml")
    assert statuses(run("cheap.yaml", overwrite=True)) == ["done", "changed", "done"]


def test_a_lost_output_is_made_again_and_the_same_content_keeps_what_follows(place: Path) -> None:
    run("cheap.yaml")
    for file in (place / "runs/cheap/scale").iterdir():
        file.unlink()
    (place / "runs/cheap/scale").rmdir()
    assert statuses(run("cheap.yaml")) == ["to do", "done", "done"]


def test_until_and_out(place: Path) -> None:
    report = run("cheap.yaml", until="evaluate", out="elsewhere")
    assert [stage["name"] for stage in report["stages"]] == ["scale", "evaluate"]
    assert not (place / "runs").exists()
    assert not (place / "elsewhere" / "deepest").exists()
    with pytest.raises(OptionError, match="no stage is called 'x'"):
        run("cheap.yaml", until="x")


def test_a_dry_run_writes_nothing(place: Path) -> None:
    report = run("cheap.yaml", dry_run=True)
    assert statuses(report) == ["to do"] * 3
    assert report["stages"][0]["command"] == "deepen scale base runs/cheap/scale --drop 1"
    assert report["stages"][1]["command"] == ("deepen evaluate runs/cheap/scale --data held_out.txt --tokens 256 --window 64")
    assert not (place / "runs").exists()
    run("cheap.yaml", until="scale")
    assert statuses(run("cheap.yaml", dry_run=True)) == ["done", "to do", "to do"]
    assert statuses(run("cheap.yaml", dry_run=True, set=["scale.drop=0"])) == ["changed", "to do", "to do"]


BRANCHES = """
name: branches
base: base
stages:
  - {stage: scale, name: left, drop: 1}
  - {stage: scale, name: right, from: base, repeat: 1:2}
  - {stage: merge, models: [left, right], weights: [0.25, 0.75], method: average}
  - {stage: scale, name: deeper, drop: 1}
"""


def test_two_branches_are_merged(place: Path) -> None:
    (place / "branches.yaml").write_text(BRANCHES)
    dry = run("branches.yaml", dry_run=True)
    assert dry["stages"][2]["command"] == (
        "deepen merge runs/branches/merge runs/branches/left runs/branches/right --method average --weights 0.25,0.75"
    )
    assert run("branches.yaml", until="left")["stages"][0]["status"] == "to do"
    assert statuses(run("branches.yaml", dry_run=True)) == ["done", "to do", "to do", "to do"]
    report = run("branches.yaml")
    assert [stage["model"]["layers"] for stage in report["stages"]] == [4, 4, 4, 6]
    left, right, merged = (
        load_file(place / "runs/branches" / name / "model.safetensors") for name in ("left", "right", "merge")
    )
    for name, tensor in merged.items():
        assert torch.equal(tensor, left[name] * 0.25 + right[name] * 0.75), name
    assert statuses(run("branches.yaml")) == ["done"] * 4
    # the second model decides the merge as well as the first
    assert statuses(run("branches.yaml", set=["right.repeat=0:1"], overwrite=True)) == ["done", "changed", "changed", "changed"]


def test_models_of_a_merge_that_are_nowhere_are_found_before_the_first_stage(place: Path) -> None:
    (place / "branches.yaml").write_text(BRANCHES.replace("[left, right]", "[deeper, left, base.gguf]"))
    with pytest.raises(RecipeError) as caught:
        check("branches.yaml", set=["merge.weights=[1,1,1]"])
    assert "stages.2.models.0: a circle: 'merge' is made from 'deeper' from 'merge'" in str(caught.value)
    assert "stages.2.models.2: base.gguf is a GGUF file" in str(caught.value)


def test_stages_are_announced_in_order(place: Path) -> None:
    heard = []
    run("cheap.yaml", on_stage=lambda number, total, stage: heard.append((number, total, stage["name"], stage["status"])))
    assert heard == [(1, 3, "scale", "to do"), (2, 3, "evaluate", "to do"), (3, 3, "deepest", "to do")]


def test_problems_are_found_before_the_first_stage(place: Path) -> None:
    (place / "bad.yaml").write_text(CHEAP.replace("held_out.txt", "lost.txt").replace("drop: 2", "drop: 5"))
    for verb in (check, run):
        with pytest.raises(RecipeError) as caught:
            verb("bad.yaml")
        assert "stages.1.data: there is no lost.txt" in str(caught.value)
        assert "stages.2: --drop 5" in str(caught.value)  # of the four layers that the stage before would make
    assert not (place / "runs").exists()


def test_a_base_that_is_missing(place: Path) -> None:
    with pytest.raises(RecipeError, match=r"base: there is no demo/lost\.gguf"):
        check("cheap.yaml", set=["base=demo/lost.gguf"])


def test_check_says_what_would_be_done(place: Path) -> None:
    found = check("tiny.yaml")
    assert (found["recipe"], found["base"], len(found["stages"])) == ("tiny", "base", 8)
    assert all(words in found["stages"][3]["command"] for words in ("--base base", "--every 2"))
    assert found["stages"][7]["command"].startswith("deepen generate runs/tiny/deeper-gguf.gguf 'the old river'")


def test_check_imports_no_torch(place: Path) -> None:
    code = (
        "import sys; from deepen.pipeline import check; check('tiny.yaml')\n"
        "print(sorted({'torch', 'transformers'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_killed_in_the_middle_and_run_again(place: Path) -> None:
    (place / "long.yaml").write_text(RECIPE.replace("tokens: 256, seq", "tokens: 9600, seq").replace("every: 2", "every: 75"))
    process = subprocess.Popen([sys.executable, "-m", "deepen", "run", "long.yaml"], stderr=subprocess.DEVNULL)
    metrics = place / "runs/tiny/.pretrain.partial/metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (place / "runs/tiny/pretrain").exists()
    with pytest.raises(OutputError, match="stage 'pretrain' was done with other options or another input"):
        run("long.yaml", set=["pretrain.seed=1"])
    report = run("long.yaml", until="pretrain")
    assert statuses(report) == ["done", "done", "done", "to do"]
    assert (place / "runs/tiny/pretrain/recovery.png").is_file()


def test_a_record_that_is_no_record_counts_as_changed(place: Path) -> None:
    run("cheap.yaml", until="scale")
    for content in ("", "[]", "{}"):
        (place / "runs/cheap/scale.json").write_text(content)
        assert statuses(run("cheap.yaml", dry_run=True))[0] == "changed"


def test_the_recipes_that_come_with_deepen_are_recipes() -> None:
    found = recipes()
    assert "smollm2-cpu" in [each["name"] for each in found]
    for each in found:
        assert load_recipe(each["path"]).name == each["name"]
        assert each["about"]
        assert f"deepen run recipes/{each['name']}.yaml" in Path(each["path"]).read_text()
        assert find_recipe(each["name"]) == Path(each["path"])


def test_every_recipe_says_what_it_needs_at_three_sizes_and_how_to_change_it() -> None:
    found = {each["name"]: each for each in recipes()}
    assert {"solar-10.7b", "smollm2-135m", "smollm2-1.7b-one-gpu", "llama-pro", "explore-first", "smollm2-cpu"} == found.keys()
    for each in found.values():
        assert len(each["needs"]) == 3, each["name"]
        assert all(need["on"] and need["memory"].endswith("GB") and need["energy"].endswith("kWh") for need in each["needs"])
        text = Path(each["path"]).read_text()
        assert "../shared" not in text
        (example,) = re.findall(r"^# Change it: (deepen run .*)$", text, flags=re.MULTILINE)
        words = shlex.split(example)
        sets = [word for before, word in pairwise(words) if before == "--set"]
        load_recipe(each["path"], set=sets)  # the example names stages and options that there are


def test_what_solar_published_is_in_its_recipe() -> None:
    stages = {stage.name: stage for stage in load_recipe(find_recipe("solar-10.7b")).stages}
    assert stages["deeper"].options() == {"drop": 8, "as_": "llama"}  # arXiv:2312.15166, section 2
    assert stages["sft-v3"].options()["cap"] == ["Open-Orca/OpenOrca=100000", "math-instruct.jsonl=52000"]  # table 1
    assert stages["candidate-1"].options()["cap"] == ["math-pairs.jsonl=20100"]
    assert [stages[name].options()["models"] for name in ("sft", "aligned")] == [
        ("sft-v3", "sft-v4"), ("candidate-1", "candidate-2"),
    ]  # fmt: skip
    assert {stages[name].options()["weights"] for name in ("sft", "aligned")} == {(0.5, 0.5)}  # tables 3 and 7
    assert (stages["candidate-1"].from_, stages["candidate-2"].from_) == ("sft-v3", "sft")  # table 6
    assert stages["candidate-1"].options()["stepwise"]
    assert stages["h6"].options()["suite"] == "h6"


def test_an_unknown_recipe_names_the_nearest(place: Path) -> None:
    with pytest.raises(RecipeError, match='did you mean "smollm2-cpu"'):
        find_recipe("smolm2-cpu")


def test_the_command_line(place: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deepen", "run", "cheap.yaml", "--until", "evaluate"], capture_output=True, text=True, check=True
    )
    header, scale, evaluate, *rest = done.stdout.splitlines()
    assert "report: runs/cheap/report.html" in rest
    assert header.split() == ["stage", "layers", "parameters", "size", "perplexity", "time", "output"]
    assert scale.split()[:2] == ["scale", "4"]
    assert "±" in evaluate
    assert "[1/2] scale: deepen scale base runs/cheap/scale --drop 1" in done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "deepen", "run", "cheap.yaml", "--json"], capture_output=True, text=True, check=True
    )
    assert statuses(json.loads(done.stdout)) == ["done", "done", "to do"]


def test_an_evaluation_compares_with_another_stage(place: Path) -> None:
    (place / "compare.yaml").write_text(
        "name: compare\nbase: base\nstages:\n  - {stage: scale, drop: 1}\n"
        "  - {stage: evaluate, data: held_out.txt, window: 64, tokens: 256, compare: [base, scale]}\n"
    )
    done = subprocess.run([sys.executable, "-m", "deepen", "run", "compare.yaml"], capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("evaluate: ")]
    assert "perplexity against base: " in lines[0]
    assert lines[1].startswith("evaluate: cannot tell on perplexity against runs/compare/scale: +0.0000 nats per token")
    (stage,) = run("compare.yaml")["stages"][1:]
    assert stage["status"] == "done"
    assert " --compare base --compare runs/compare/scale " in stage["command"]
    assert list(stage["result"]["comparisons"]) == ["base", "runs/compare/scale"]


def test_a_search_gives_the_next_stage_its_plan(place: Path) -> None:
    search = "{stage: explore, name: look, data: train.txt, add: 1, tokens: 1k, window: 32, kinds: [repeat, times]}"
    scaling = "{stage: scale, plan: look/best.yaml}"
    judging = "{stage: evaluate, data: held_out.txt, window: 32, tokens: 256}"
    recipe = Path("search.yaml")
    recipe.write_text(f"name: search\nbase: base\nstages:\n  - {search}\n  - {scaling}\n  - {judging}\n")
    planned = [stage["command"] for stage in check("search.yaml")["stages"]]
    assert "--out runs/search/look" in planned[0]
    assert "--kinds repeat,times" in planned[0]
    assert "--plan runs/search/look/best.yaml" in planned[1]
    report = run("search.yaml")
    look = report["stages"][0]
    assert [stage["model"]["layers"] for stage in report["stages"]] == [3, 4, 4]
    best = json.loads(Path("runs/search/look/plans.json").read_text())["plans"][0]
    assert look["result"]["best"] == best
    assert json.loads(Path("runs/search/scale/deepen.json").read_text())["plan"]["layers"] == best["layers"]
    assert any(picture.endswith("look/heatmap.png") for picture in report["pictures"])
    assert statuses(run("search.yaml")) == ["done"] * 3
    with pytest.raises(OutputError, match="'look' was done with other options"):
        run("search.yaml", set=["look.seed=1"])
    assert run("search.yaml", set=["look.seed=1"], overwrite=True)["stages"][0]["status"] == "changed"
    recipe.write_text(recipe.read_text().replace("look/best", "lok/best"))
    with pytest.raises(RecipeError, match="there is no lok/best"):
        check("search.yaml")


def test_an_instruct_stage(place: Path) -> None:
    chats = [{"instruction": "Speak.", "input": "", "output": "the old river"}] * 12
    (place / "chats.json").write_text(json.dumps(chats))
    (place / "mine.jinja").write_text("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}")
    (place / "tuned.yaml").write_text(
        "name: tuned\nbase: base\nstages:\n"
        "  - {stage: scale, drop: 1}\n"
        "  - {stage: instruct, data: chats.json, template: mine.jinja, cap: [chats.json=11], sequence_length: 64}\n"
        "  - {stage: evaluate, data: held_out.txt, window: 64, tokens: 256}\n"
    )
    report = run("tuned.yaml")
    assert report["pictures"] == ["runs/tuned/instruct/training.png"]
    assert "--data chats.json --sequence-length 64 --template mine.jinja --cap chats.json=11" in report["stages"][1]["command"]
    assert (place / "runs/tuned/instruct/chat_template.jinja").read_text() == (place / "mine.jinja").read_text()
    assert statuses(run("tuned.yaml")) == ["done"] * 3
    (place / "mine.jinja").write_text("{% for m in messages %}{{ m.content + eos_token }}{% endfor %}")
    assert statuses(run("tuned.yaml", dry_run=True))[1] == "changed"
    (place / "mine.jinja").unlink()
    with pytest.raises(RecipeError, match=r"stages\.1\.template: there is no mine\.jinja"):
        run("tuned.yaml")


def test_an_align_stage(place: Path) -> None:
    pairs = [{"prompt": "Speak.", "chosen": "the old river", "rejected": f"{number} stones"} for number in range(12)]
    for name, part in (("some.json", pairs[:6]), ("more.json", pairs[6:])):
        (place / name).write_text(json.dumps(part))
    (place / "aligned.yaml").write_text(
        "name: aligned\nbase: base\nstages:\n"
        "  - {stage: align, data: [some.json, more.json], stepwise: true, beta: 0.3, template: solar, sequence_length: 64}\n"
        "  - {stage: evaluate, data: held_out.txt, window: 64, tokens: 256}\n"
    )
    report = run("aligned.yaml")
    assert "--stepwise --beta 0.3" in report["stages"][0]["command"]
    assert report["pictures"] == ["runs/aligned/align/training.png"]
    manifest = json.loads((place / "runs/aligned/align/deepen.json").read_text())
    assert {chunk["data"] for chunk in manifest["results"]["chunks"]} == {"some.json", "more.json"}
    assert statuses(run("aligned.yaml")) == ["done"] * 2
    (place / "some.json").write_text(json.dumps(pairs[:5]))
    assert statuses(run("aligned.yaml", dry_run=True))[0] == "changed"
