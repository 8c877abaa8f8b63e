"""Every command that a page or recipe shows is one that the program takes; those that take a moment are run."""

import itertools
import re
import shlex
import shutil
from pathlib import Path

import pytest
import typer

from deepen.cli import app, run_program
from deepen.plan import parse_plan
from families import make_checkpoint

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("recipes/*.yaml"))]
PAGES += [path for path in sorted(ROOT.glob("deploy/*")) if path.is_file()]
COMMANDS = typer.main.get_command(app).commands
LAUNCHERS = r"(?:pipx run (?:--spec \S+ )?|uvx --from \S+ |torchrun .*-m |accelerate launch -m |docker run .*:\S+ |\S*/bin/)?"
QUICK = {"plan", "scale", "verify", "doctor", "recipes"}
LAYERS = 32


def commands(text: str) -> list[list[str]]:
    """The program's command lines in shell blocks, and in the indented comments of recipes and scripts, as words."""
    blocks = re.findall(r"^ *```(\w*)\n(.*?)^ *```", text, flags=re.DOTALL | re.MULTILINE)
    blocks = [block for language, block in blocks if language in {"", "sh", "bash", "console", "shell"}]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    lines += [line.lstrip("# ") for line in text.splitlines() if line.startswith("#   ")]
    found = []
    for part in (part.strip().removeprefix("$ ") for line in lines for part in re.split(r"\s(?:&&|\|)\s", line)):
        if match := re.match(rf"{LAUNCHERS}(?:python -m )?deepen(?: (.*)|$)", part):
            words = shlex.split(match[1] or "", comments=True)
            found.append([*itertools.takewhile(lambda word: word[:1] not in {*"><&("}, words)])
    return found


def test_commands_are_found_behind_their_launchers() -> None:
    text = "```sh\n$ deepen plan x \\\n  --drop 8\n```\n"
    text += "```bash\ntorchrun --nproc-per-node 2 -m deepen run y\nmake demo && .venv/bin/deepen doctor\n"
    text += "cat a | pipx run --spec 'deepen[run]' deepen chat m\npip install deepen\n```\n#   python -m deepen run y.yaml\n"
    text += "# deepen in words\nplain deepen text\n"
    assert [" ".join(words) for words in commands(text)] == ["plan x --drop 8", "run y", "doctor", "chat m", "run y.yaml"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_parses(page: Path) -> None:
    for words in commands(page.read_text(encoding="utf-8")):
        if words and not words[0].startswith("-") and "…" not in words:
            assert words[0] in COMMANDS, words
            COMMANDS[words[0]].make_context(words[0], [*words[1:]])  # raises what the program would say


def test_the_manual_has_commands_of_every_verb() -> None:
    shown = {words[0] for page in PAGES for words in commands(page.read_text(encoding="utf-8")) if words}
    assert set(COMMANDS) <= shown | {"--help"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("llama", tmp_path_factory.mktemp("model") / "tiny", num_hidden_layers=LAYERS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_quick_commands_run(page: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """With a tiny model of 32 layers wherever a page names one; a page's commands follow each other as for its reader."""
    monkeypatch.chdir(tmp_path)
    for words in commands(page.read_text(encoding="utf-8")):
        if not words or words[0] not in QUICK or "…" in words:
            continue
        context = COMMANDS[words[0]].make_context(words[0], [*words[1:]])
        for name in ("model", "source"):
            if value := context.params.get(name):
                lay(Path(str(value)), model)
        if words[0] == "verify" and not Path(context.params["out"]).exists():
            run_program(
                ["scale", str(context.params["source"] or model), str(context.params["out"]), "--layers", f"0:{LAYERS}"]
            )
        if plan := context.params.get("plan"):
            Path(plan).parent.mkdir(parents=True, exist_ok=True)
            Path(plan).write_text(parse_plan(LAYERS, repeat="8:24").to_yaml())
        if words[0] == "scale" and Path(context.params["out"]).exists():
            shutil.rmtree(context.params["out"])
        assert run_program(words) == 0, (words, capsys.readouterr().err)


def lay(path: Path, model: Path) -> None:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(model, target_is_directory=True)
