"""What is written twice is generated or tested: the command-line page, links, recipes, maps."""

import importlib.util
import re
from pathlib import Path

import pytest
import typer

from deepen.cli import app
from deepen.recipe import load_recipe
from families import TOKENIZER_VOCABULARY, add_tokenizer, make_checkpoint

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
RECIPES = sorted(ROOT.glob("recipes/**/*.yaml"))
COMMANDS = typer.main.get_command(app).commands


def test_the_command_line_page_is_what_the_program_says() -> None:
    spec = importlib.util.spec_from_file_location("generate_cli", ROOT / "docs" / "generate_cli.py")
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == generator.generate(), "run python docs/generate_cli.py"


def test_the_verbs_are_those_of_this_version() -> None:
    verbs = "plan doctor scale verify merge explore pretrain instruct align synthesize evaluate generate chat serve"
    verbs += " batch export summarize support tutor write run check recipes"
    assert list(COMMANDS) == verbs.split()


def test_every_option_has_help() -> None:
    for verb, command in COMMANDS.items():
        assert command.help, verb
        for parameter in command.params:
            assert getattr(parameter, "help", None), (verb, parameter.name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), target


def test_there_are_pages_and_recipes() -> None:
    assert ROOT / "docs" / "cli.md" in PAGES
    assert ROOT / "recipes" / "smollm2-cpu.yaml" in RECIPES


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_every_recipe_is_sound_and_opens_with_its_command_needs_and_cost(recipe: Path) -> None:
    assert load_recipe(recipe).name == recipe.stem
    opening = recipe.read_text(encoding="utf-8").partition("\n\n")[0]
    assert f"deepen run recipes/{recipe.name}" in opening
    assert "Needs:" in opening
    assert "Costs:" in opening


def test_the_maps_name_every_room() -> None:
    rooms = {path.stem for path in (ROOT / "src" / "deepen").iterdir() if path.suffix in {"", ".py"}}
    rooms -= {"__init__", "__main__", "__pycache__"}
    readme = (ROOT / "README.md").read_text(encoding="utf-8").partition("src/deepen/\n")[2].partition("```")[0]
    design = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    assert rooms == set(re.findall(r"[a-z_]+", "\n".join(line[:40] for line in readme.splitlines()))) & rooms
    assert rooms <= set(re.findall(r"`([a-z_]+)/?`", design))
    assert len(rooms) > 15


def test_the_changelog_knows_the_version() -> None:
    import deepen

    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## [Unreleased]" in changelog or f"## [{deepen.__version__}]" in changelog


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    sizes = {"num_hidden_layers": 16, "vocab_size": TOKENIZER_VOCABULARY, "max_position_embeddings": 512}
    add_tokenizer(make_checkpoint("llama", tmp_path / "base", **sizes))
    (tmp_path / "held_out.txt").write_text("the layers of the base model " * 100, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(block, names)
    assert names["report"].tasks["perplexity"]["value"] > 1
