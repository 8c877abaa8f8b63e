"""What takes minutes or a package registry: `make nightly`. The wheel in clean environments; the pages' commands that train."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from test_commands import COMMANDS, PAGES, commands, lay

from deepen.cli import run_program
from exportable import write_checkpoint
from smoke import WORKS, build, smoke
from trainable import write_text

pytestmark = pytest.mark.nightly
SHORTER = {"pretrain": ["--tokens", "2k"], "evaluate": ["--tokens", "2k"], "generate": ["--max-new-tokens", "4"]}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"))


@pytest.mark.parametrize("extra", WORKS)
def test_the_wheel_works_with_each_extra_alone(extra: str, wheel: Path, tmp_path: Path) -> None:
    assert smoke(extra, wheel, tmp_path)["environment_bytes"] > 0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(
        tmp_path_factory.mktemp("model") / "tiny", num_hidden_layers=32, max_position_embeddings=1024, vocab_size=512
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_that_train_judge_and_export_run(page: Path, model: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """Each by itself: with a tiny model for every model that it names, some text for its data, and few tokens."""
    for number, words in enumerate(commands(page.read_text(encoding="utf-8"))):
        verb = words[0] if words else ""
        elsewhere = {"…", "--suite", "--tasks", "--engine"} & {*words}
        if verb not in {"pretrain", "merge", "export", "evaluate"} or elsewhere:
            continue
        place = tmp_path / str(number)
        place.mkdir()
        monkeypatch.chdir(place)
        context = COMMANDS[verb].make_context(verb, [*words[1:]])
        named = [context.params.get(name) for name in ("model", "base", "teacher")]
        for path in [*named, *(context.params.get("models") or ()), *(context.params.get("compare") or ())]:
            if path:
                lay(Path(str(path)), model)
        for name in ("data", "validation"):
            given = context.params.get(name) or ()
            for path in [given] if isinstance(given, str | Path) else given:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                write_text(Path(path).with_suffix(Path(path).suffix or ".txt"), 3000)
                if not Path(path).exists():
                    Path(path).symlink_to(Path(path).with_suffix(".txt"))
        assert run_program([*words, *SHORTER.get(verb, ())]) == 0, (words, capsys.readouterr().err)


def test_the_source_distribution_makes_the_same_wheel(tmp_path: Path) -> None:
    wheel = build(tmp_path)
    (source,) = tmp_path.glob("*.tar.gz")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", str(source)]
    subprocess.run([*command, "-w", str(tmp_path / "again")], check=True)
    (again,) = (tmp_path / "again").glob("*.whl")
    assert sorted(zipfile.ZipFile(wheel).namelist()) == sorted(zipfile.ZipFile(again).namelist())
