"""Write docs/cli.md from the `--help` of every verb.

python docs/generate_cli.py
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parent / "cli.md"
WIDTH = 100
_HEAD = """# Command line

Made by `python docs/generate_cli.py` from the program's own help; do not edit.
"""


def generate() -> str:
    """The page as Markdown."""
    from deepen.cli import app

    verbs = [command.callback.__name__ for command in app.registered_commands if command.callback]
    sections = [_section("deepen", _help())] + [_section(f"deepen {verb}", _help(verb)) for verb in verbs]
    return "\n".join([_HEAD, *sections])


def _section(title: str, text: str) -> str:
    lines = [line.rstrip() for line in text.strip("\n").splitlines()]
    while not lines[0]:
        lines.pop(0)
    while not lines[-1]:
        lines.pop()
    return f"## {title}\n\n```text\n" + "\n".join(lines) + "\n```\n"


def _help(*words: str) -> str:
    # a fixed terminal, so that the page is the same on every machine
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("TERMINAL", "_TYPER", "FORCE_"))}
    environment |= {"COLUMNS": str(WIDTH), "TERMINAL_WIDTH": str(WIDTH), "NO_COLOR": "1", "TERM": "dumb", "PYTHONUTF8": "1"}
    command = [sys.executable, "-m", "deepen", *words, "--help"]
    return subprocess.run(command, capture_output=True, encoding="utf-8", env=environment, check=True).stdout


if __name__ == "__main__":
    PAGE.write_text(generate(), encoding="utf-8")
