"""A run as people see it: drawn on a terminal, as lines in a log."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from deepen.cli.live import View, sparkline
from deepen.progress import progress, watched
from pseudoterminal import PseudoTerminal
from trainable import write_checkpoint, write_text

RECIPE = """
name: shown
base: base
stages:
  - {stage: scale, drop: 0}
  - {stage: pretrain, data: train.txt, tokens: 320, sequence_length: 32, batch_tokens: 32, validation: held_out.txt,
     validation_tokens: 64, every: 5, precision: float32}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    write_checkpoint(tmp_path / "base")
    write_text(tmp_path / "train.txt", 300)
    write_text(tmp_path / "held_out.txt", 100, seed=1)
    (tmp_path / "shown.yaml").write_text(RECIPE)
    return tmp_path


def drawn(view: View) -> str:
    console = Console(width=90, color_system=None, file=io.StringIO(), record=True)
    console.print(view.render())
    return console.export_text()


def test_stages_progress_and_losses_are_drawn() -> None:
    view = View()
    view.stage(1, 3, {"name": "base", "stage": "scale", "status": "done"})
    view.stage(2, 3, {"name": "healed", "stage": "pretrain", "status": "to do"})
    for number, loss in enumerate((4.0, 3.0, 2.0)):
        view.progress("Training", (number + 1) / 4, f"{number}k of 4k tokens, 1 min left · loss {loss:.3f}")
    text = drawn(view)
    for words in ("✓  base    scale", "done already", "▶  healed  pretrain", "·  1 more", " 75 %  Training", "1 min left",
                  "█▅▁  loss 2.000"):  # fmt: skip
        assert words in text
    view.end()
    assert "✓  healed" in drawn(view)
    assert "Training" not in drawn(view)


def test_a_sparkline_is_as_wide_as_it_may_be() -> None:
    assert sparkline([]) == ""
    assert sparkline([1.0]) == "▁"
    assert len(sparkline([float(n) for n in range(1000)])) <= 32
    assert sparkline([float(n) for n in range(1000)])[-1] == "█"


def test_progress_tells_who_watches_and_nobody_else(capsys: pytest.CaptureFixture[str]) -> None:
    heard = []
    with watched(lambda *told: heard.append(told)), progress("Work", 4, "steps") as advance:
        advance(1)
        advance(3, note="loss 1.5")
    assert [(what, share) for what, share, _ in heard] == [("Work", 0.0), ("Work", 0.25), ("Work", 1.0)]
    assert heard[-1][2].endswith("· loss 1.5")
    assert capsys.readouterr().err == ""
    with progress("Work", 1, "steps"):
        pass
    assert "Work: 0 steps in" in capsys.readouterr().err


def test_on_a_terminal(place: Path) -> None:
    with PseudoTerminal([sys.executable, "-m", "deepen", "run", "shown.yaml"], columns=120, rows=40) as terminal:
        terminal.expect("▶")
        terminal.expect("loss ")
        terminal.expect("report: runs/shown/report.html", seconds=120)
        assert "✓" in terminal.shown
    assert (place / "runs/shown/pretrain/deepen.json").is_file()


def test_in_a_log(place: Path) -> None:
    words = [sys.executable, "-m", "deepen", "run", "shown.yaml"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "[1/2] scale: deepen scale base" in done.stderr
    assert "\x1b" not in done.stderr + done.stdout
    assert "▶" not in done.stderr
